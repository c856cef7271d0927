//! Larder: a cache that speaks the Redis protocol and knows the database behind it.
#![deny(unsafe_code)]

#[cfg(feature = "server")]
pub mod admin;
pub mod cache;
pub mod clock;
#[cfg(feature = "server")]
pub mod command;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod dead_letter;
pub mod error;
#[cfg(feature = "server")]
pub mod health;
pub mod journal;
#[cfg(feature = "server")]
pub mod log;
#[cfg(feature = "server")]
pub mod metrics;
pub mod policy;
pub mod protocol;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "simulate")]
pub mod simulate;
pub mod store;
pub mod tier;
pub mod value;
pub mod vitals;
