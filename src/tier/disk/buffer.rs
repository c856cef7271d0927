//! A buffer for direct I/O: its memory begins at a page's boundary and is whole pages long.

#![allow(unsafe_code, reason = "bytes over aligned memory")]

use std::{
    alloc::{self, Layout},
    ops::{Deref, DerefMut},
    ptr::NonNull,
    slice,
};

use super::PAGE;

/// Page-aligned bytes of a fixed length.
pub struct Buffer {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is the buffer's own, reached through `&self` and `&mut self` only.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

fn layout(len: usize) -> Layout {
    Layout::from_size_align(len, PAGE).expect("buffers are far smaller than the address space")
}

impl Buffer {
    /// Zeroes, at least `len` of them, rounded up to whole pages (and at least one).
    pub fn zeroed(len: usize) -> Self {
        let len = len.max(1).next_multiple_of(PAGE);
        // SAFETY: the layout isn't empty.
        let at = unsafe { alloc::alloc_zeroed(layout(len)) };
        let Some(at) = NonNull::new(at) else { alloc::handle_alloc_error(layout(len)) };
        Self { at, len }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and nobody has it any more.
        unsafe { alloc::dealloc(self.at.as_ptr(), layout(self.len)) };
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` initialized bytes, shared as `self` is.
        unsafe { slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: `len` initialized bytes, ours alone while `self` is.
        unsafe { slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_aligned_whole_and_zero() {
        for (asked, len) in [(0, PAGE), (1, PAGE), (PAGE, PAGE), (PAGE + 1, 2 * PAGE)] {
            let mut buffer = Buffer::zeroed(asked);
            assert_eq!((buffer.len(), buffer.as_ptr() as usize % PAGE), (len, 0));
            assert!(buffer.iter().all(|byte| *byte == 0));
            buffer[len - 1] = 7;
            assert_eq!(buffer[len - 1], 7);
        }
    }
}
