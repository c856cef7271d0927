//! The allocator's figures, and its free pages given back to the system.
//!
//! With feature `jemalloc` these are jemalloc's (<https://jemalloc.net/jemalloc.3.html>), which count
//! what the process has only if the program made it the global allocator, as the binary does.

#![allow(unsafe_code, reason = "jemalloc's controls that take no value have no safe wrapper")]

/// What the allocator has, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// Allocated by the program.
    pub allocated: u64,
    /// In pages that hold at least one allocation.
    pub active: u64,
    /// Mapped to physical memory, as the allocator sees it.
    pub resident: u64,
}

#[cfg(feature = "jemalloc")]
mod jemalloc {
    use std::{
        ffi::{CStr, c_char, c_int, c_void},
        ptr::null_mut,
    };

    use tikv_jemalloc_ctl::{Error, arenas, epoch, stats, version};

    use super::Figures;

    // SAFETY: the signature is the one that jemalloc documents for mallctl.
    unsafe extern "C" {
        /// `mallctl` by the name that tikv-jemalloc-sys gives it.
        fn _rjem_mallctl(
            name: *const c_char,
            old: *mut c_void,
            old_len: *mut usize,
            new: *mut c_void,
            new_len: usize,
        ) -> c_int;
    }

    /// Lets a control act that neither takes nor returns a value; whether it did.
    fn act(name: &CStr) -> bool {
        // SAFETY: the name ends with a zero byte, and null pointers stand for "no value".
        unsafe { _rjem_mallctl(name.as_ptr(), null_mut(), null_mut(), null_mut(), 0) == 0 }
    }

    /// Gives the pages that no allocation uses back to the system: of this thread's cache and of all
    /// arenas (4096 is `MALLCTL_ARENAS_ALL`). Other threads' caches are bounded and small.
    pub fn purge() -> bool {
        act(c"thread.tcache.flush");
        act(c"arena.4096.purge")
    }

    /// The figures of now.
    pub fn figures() -> Option<Figures> {
        let read = || -> Result<Figures, Error> {
            epoch::advance()?;
            Ok(Figures {
                allocated: stats::allocated::read()? as u64,
                active: stats::active::read()? as u64,
                resident: stats::resident::read()? as u64,
            })
        };
        read().ok()
    }

    /// Name and version, as INFO has them.
    pub fn name() -> String {
        let full = version::read().unwrap_or_default();
        format!("jemalloc-{}", full.split('-').next().unwrap_or_default())
    }

    /// Its statistics, as text.
    pub fn report() -> Option<String> {
        let read = || -> Result<String, Error> {
            epoch::advance()?;
            let lines = [
                ("allocated by the program", stats::allocated::read()?),
                ("in pages with allocations", stats::active::read()?),
                ("for the allocator's own data", stats::metadata::read()?),
                ("resident", stats::resident::read()?),
                ("mapped", stats::mapped::read()?),
                ("kept mapped, but given back", stats::retained::read()?),
            ];
            let line = |(what, bytes): &(&str, usize)| format!("{bytes:>16} bytes {what}\n");
            let arenas = arenas::narenas::read()?;
            Ok(format!("{}, {arenas} arenas\n", name())
                + &lines.iter().map(line).collect::<String>())
        };
        read().ok()
    }
}

#[cfg(feature = "jemalloc")]
pub use jemalloc::{figures, name, purge, report};

#[cfg(not(feature = "jemalloc"))]
mod system {
    use super::Figures;

    /// Not known.
    pub fn figures() -> Option<Figures> {
        None
    }

    /// The system's, whichever that is.
    pub fn name() -> String {
        "libc".to_owned()
    }

    /// Left to the system.
    pub fn purge() -> bool {
        false
    }

    /// Not known.
    pub fn report() -> Option<String> {
        None
    }
}

#[cfg(not(feature = "jemalloc"))]
pub use system::{figures, name, purge, report};

#[cfg(all(test, feature = "jemalloc"))]
mod tests {
    use super::*;

    #[test]
    fn jemalloc_answers() {
        assert!(purge());
        let figures = figures().unwrap();
        assert!(figures.active >= figures.allocated);
        assert!(name().starts_with("jemalloc-5"));
        assert!(report().unwrap().lines().count() == 7);
    }
}
