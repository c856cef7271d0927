//! What a value is made of: number syntax, patterns, bit strings, the serialised form.
//!
//! Pure leaves: no I/O, no locks, no knowledge of commands, tiers or the clock. A command parses its
//! arguments, calls one function here and writes the reply, so the rules of Redis that are about
//! bytes alone stand in one place and are tested without a server.

pub mod bitfield;
pub mod bits;
pub mod codec;
pub mod glob;
pub mod lcs;
pub mod long_double;
mod lzf;
pub mod number;
