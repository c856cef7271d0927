//! What the benches that run whole servers share: starting and watching servers, the load generator,
//! the arithmetic of the reports.
//!
//! The way of a measurement: [`server`] starts the peers, each as a child pinned to its core by
//! [`launch`]; [`fill`] loads the keys; [`wire`] encodes a stream of requests whose keys [`zipf`]
//! chose; [`load`] drives it over many connections and checks every reply, timing them into a
//! [`histogram`]; [`proc`] says what it cost the server; [`report`] prints medians and ratios.
//! [`floor`] is the peer that can't be beaten: a server that answers without looking. [`scaling`] is
//! the second question that `peers` can ask.

// Each bench uses its part of this module; and a bench without the test harness is compiled for test
// with its `#[test]` functions left out, but not the imports of their modules.
#![allow(dead_code, unused_imports)]

pub mod fill;
pub mod flags;
pub mod floor;
pub mod histogram;
pub mod hot_path;
pub mod launch;
pub mod load;
pub mod proc;
pub mod report;
pub mod scaling;
pub mod server;
pub mod traces;
pub mod wire;
pub mod zipf;
