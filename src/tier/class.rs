//! What an allocation really costs: the allocator's size classes as a pure function.
//!
//! jemalloc serves a request from the smallest class that holds it: multiples of 16 up to 128 bytes
//! (8 below that), then four classes per doubling. Every entry asks for exactly its class, so that
//! the bytes we account are the bytes that are gone, and a string may grow in place up to its class.
//! A test compares this with `nallocx`.

/// The bytes that an allocation of `size` bytes takes.
pub const fn class(size: usize) -> usize {
    if size <= 8 {
        8
    } else if size <= 128 {
        (size + 15) & !15
    } else {
        let step = 1usize << (usize::BITS - 1 - (size - 1).leading_zeros() - 2);
        (size + step - 1) & !(step - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::class;

    #[test]
    fn a_class_holds_the_size_and_is_its_own_class() {
        for size in (1..100_000).chain([1 << 20, (1 << 20) + 1, 512 << 20]) {
            let class_of = class(size);
            assert!(class_of >= size && class(class_of) == class_of, "{size} -> {class_of}");
            assert!(size <= 128 || class_of - size < size / 4 + 1);
        }
        assert_eq!([class(129), class(161), class(257), class(4097)], [160, 192, 320, 5120]);
    }

    #[cfg(feature = "jemalloc")]
    #[test]
    fn the_allocator_takes_exactly_a_class() {
        for size in (1..70_000).chain((70_000..9_000_000).step_by(4_093)) {
            assert_eq!(usable(class(size)), class(size), "size {size}");
            assert!(size > 32 << 10 || usable(size) == class(size), "size {size}");
        }
    }

    /// The bytes that jemalloc gives for `size`.
    #[cfg(feature = "jemalloc")]
    #[allow(unsafe_code, reason = "asks the allocator")]
    fn usable(size: usize) -> usize {
        use std::alloc::{GlobalAlloc, Layout};
        let layout = Layout::from_size_align(size, 8).unwrap();
        // SAFETY: the layout is valid and not empty, and the allocation is freed as it was made.
        unsafe {
            let at = tikv_jemallocator::Jemalloc.alloc(layout);
            let usable = tikv_jemallocator::usable_size(at);
            tikv_jemallocator::Jemalloc.dealloc(at, layout);
            usable
        }
    }
}
