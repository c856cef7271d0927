//! An entry of L2: key and value in one reference-counted allocation.
//!
//! ```text
//!  0        4          8                          16
//!  +--------+----------+--------------------------+-----------+------------+---------+-----+-------+
//!  | word   | value    | deadline (48 bits, unix  | kept      | key len    | access  | key | value |
//!  | atomic | len u32  | ms) << 16 | key len u16  | until u64,| u32, long  | u32, if |     |       |
//!  |        |          | atomic                   | if kept   | keys only  | kept    |     |       |
//!  +--------+----------+--------------------------+-----------+------------+---------+-----+-------+
//! ```
//!
//! Who may do what: key, length and value are written before an entry is shared and change later only
//! through [`EntryMut`], which exists only while the table's reference is the sole one, and the table
//! is locked. Deadline and the marks in `word` are atomics, changed under the stripe's lock (but for
//! references and the mark of a hit), read anywhere. The last reference to go frees the allocation. An
//! entry takes exactly the allocator's size class of its parts ([`class`]), so the class follows from
//! the lengths and need not be stored.

#![allow(unsafe_code, reason = "one allocation per entry, shared by reference count")]

use std::{
    alloc::Layout,
    marker::PhantomData,
    ptr::{self, NonNull},
    slice,
};

use super::{
    class::class,
    sync::{AtomicU32, AtomicU64, Ordering::*, alloc, fence},
};

/// The fixed part of an entry.
#[repr(C)]
struct Header {
    word: AtomicU32,
    value_len: u32,
    time: AtomicU64,
}

/// Bytes of the fixed part.
pub const HEADER: usize = size_of::<Header>();

/// Lines of an entry that are loaded ahead: what a small value takes.
const PREFETCHED: usize = 3;

/// The longest value: its length is a `u32`, and the word above is kept free for a sum with the key.
pub const MAX_VALUE: usize = u32::MAX as usize;
/// A key length from here on stands in a word of its own.
const LONG_KEY: usize = u16::MAX as usize;
/// A deadline is 48 bits of milliseconds: later ones are cut to the year 10889.
pub const MAX_DEADLINE: u64 = (1 << 48) - 1;

// `word`: references in the low bits, then flags.
const REFS: u32 = (1 << 10) - 1;
/// The most references that an entry has.
pub const MOST_REFS: usize = REFS as usize - 1;
const DEAD: u32 = 1 << 10;
const MARK: u32 = 3 << 11;
const MARK_ONE: u32 = 1 << 11;
const QUEUE_SHIFT: u32 = 13;
const QUEUE: u32 = 3 << QUEUE_SHIFT;
const PARITY: u32 = 1 << 15;
const TIMED: u32 = 1 << 16;
const LONG: u32 = 1 << 17;
const ACCESS: u32 = 1 << 18;
const KEPT: u32 = 1 << 19;
const RAW: u32 = 1 << 20;
const STORED: u32 = 1 << 21;
const RENEWING: u32 = 1 << 22;

/// What a new entry carries beside key and value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// When the data ends, in unix milliseconds; 0: never.
    pub deadline: u64,
    /// When the cached copy is of no more use, even for want of a better one, in unix milliseconds; 0:
    /// never. How long before that it is fresh, its namespace knows.
    pub kept_until: u64,
    /// Whether the entry keeps a word for an access clock (the LRU and LFU policies).
    pub access: Option<u32>,
    /// Whether the string was made by an edit, so that OBJECT ENCODING says `raw`.
    pub raw: bool,
}

impl Meta {
    fn flags(self) -> u32 {
        let flag = |on: bool, flag: u32| if on { flag } else { 0 };
        flag(self.access.is_some(), ACCESS) | flag(self.kept_until != 0, KEPT) | flag(self.raw, RAW)
    }
}

/// Where the parts of an entry lie, from its lengths and flags alone.
#[derive(Clone, Copy)]
struct Shape {
    key: usize,
    key_len: usize,
    value_len: usize,
}

impl Shape {
    fn new(key_len: usize, value_len: usize, flags: u32) -> Self {
        let flag = |flag: u32, bytes: usize| if flags & flag != 0 { bytes } else { 0 };
        let long = if key_len >= LONG_KEY { 4 } else { 0 };
        let key = HEADER + flag(KEPT, 8) + long + flag(ACCESS, 4);
        Self { key, key_len, value_len }
    }

    fn value(self) -> usize {
        self.key + self.key_len
    }

    fn layout(self) -> Layout {
        let size = class(self.value() + self.value_len);
        Layout::from_size_align(size, align_of::<Header>()).expect("lengths are 32 bit")
    }
}

/// The bytes that an entry of these lengths takes from the allocator.
pub fn entry_size(key_len: usize, value_len: usize, meta: &Meta) -> usize {
    Shape::new(key_len, value_len, meta.flags()).layout().size()
}

/// Starts loading a line into the processor's cache.
#[inline]
pub(super) fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint; it may name any address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Starts loading what a small entry takes at this address.
#[inline]
pub(super) fn prefetch_entry(at: *const u8) {
    (0..PREFETCHED).for_each(|line| prefetch(at.wrapping_add(line * 64)));
}

/// A reference to an entry that keeps it alive.
pub struct EntryRef(NonNull<Header>);

// SAFETY: all shared state of an entry is atomic or immutable while shared (see the module's doc).
unsafe impl Send for EntryRef {}
// SAFETY: as above.
unsafe impl Sync for EntryRef {}

impl EntryRef {
    /// An entry whose value is the concatenation of `parts`.
    pub fn new(key: &[u8], parts: &[&[u8]], meta: &Meta) -> Self {
        let len = parts.iter().map(|part| part.len()).sum();
        let (this, shape) = Self::allocate(key, len, meta, false);
        let mut at = shape.value();
        for part in parts {
            // SAFETY: the parts' lengths sum up to the value's, which the layout holds.
            unsafe { this.bytes_at(at).copy_from_nonoverlapping(part.as_ptr(), part.len()) };
            at += part.len();
        }
        this
    }

    /// An entry whose value is `len` zero bytes, which cost no memory before they are written.
    pub fn zeroed(key: &[u8], len: usize, meta: &Meta) -> Self {
        Self::allocate(key, len, meta, true).0
    }

    fn allocate(key: &[u8], value_len: usize, meta: &Meta, zeroed: bool) -> (Self, Shape) {
        assert!(value_len <= MAX_VALUE && key.len() <= MAX_VALUE, "bounded by the protocol");
        let long = key.len() >= LONG_KEY;
        let flags = meta.flags() | if long { LONG } else { 0 };
        let shape = Shape::new(key.len(), value_len, flags);
        let layout = shape.layout();
        // SAFETY: the layout is never empty.
        let at = unsafe { if zeroed { alloc::alloc_zeroed(layout) } else { alloc::alloc(layout) } };
        let Some(at) = NonNull::new(at.cast::<Header>()) else {
            std::alloc::handle_alloc_error(layout)
        };
        let this = Self(at);
        let short = if long { LONG_KEY } else { key.len() } as u64;
        let header = Header {
            word: AtomicU32::new(flags | 1),
            value_len: value_len as u32,
            time: AtomicU64::new(meta.deadline.min(MAX_DEADLINE) << 16 | short),
        };
        // SAFETY: header, optional words and key lie inside the layout; nobody else has the pointer.
        unsafe {
            at.write(header);
            let mut next = HEADER;
            if meta.kept_until != 0 {
                this.bytes_at(next).cast::<u64>().write(meta.kept_until);
                next += 8;
            }
            if long {
                this.bytes_at(next).cast::<u32>().write(key.len() as u32);
                next += 4;
            }
            if let Some(access) = meta.access {
                this.bytes_at(next).cast::<u32>().write(access);
            }
            this.bytes_at(shape.key).copy_from_nonoverlapping(key.as_ptr(), key.len());
        }
        (this, shape)
    }

    /// A pointer `offset` bytes into the allocation.
    ///
    /// # Safety
    /// `offset` must lie within the allocation.
    unsafe fn bytes_at(&self, offset: usize) -> *mut u8 {
        // SAFETY: the caller's duty.
        unsafe { self.0.as_ptr().cast::<u8>().add(offset) }
    }

    /// A view of the entry.
    #[inline]
    pub fn get(&self) -> Entry<'_> {
        Entry { at: self.0, life: PhantomData }
    }

    /// Another reference, unless there are about a thousand already (then copy what is needed).
    pub fn try_clone(&self) -> Option<Self> {
        self.get().share()
    }

    /// Exclusive access, if this is the only reference.
    pub fn get_mut(&mut self) -> Option<EntryMut<'_>> {
        // SAFETY: `&mut self` keeps the reference and is the only way through it.
        unsafe { EntryMut::from_bits(self.0.as_ptr().expose_provenance() as u64) }
    }

    /// The pointer as a number for a table slot, which then owns the reference.
    pub(super) fn into_bits(self) -> u64 {
        let bits = self.0.as_ptr().expose_provenance() as u64;
        std::mem::forget(self);
        assert!(bits >> 48 == 0, "user addresses have 47 bits");
        bits
    }

    /// The reference that a table slot held.
    ///
    /// # Safety
    /// `bits` comes from [`EntryRef::into_bits`], and the slot gives up its reference.
    pub(super) unsafe fn from_bits(bits: u64) -> Self {
        let at = ptr::with_exposed_provenance_mut::<Header>(bits as usize);
        // SAFETY: the caller's duty; into_bits never makes null.
        Self(unsafe { NonNull::new_unchecked(at) })
    }
}

impl Drop for EntryRef {
    #[inline]
    fn drop(&mut self) {
        let entry = self.get();
        if entry.header().word.fetch_sub(1, Release) & REFS != 1 {
            return;
        }
        fence(Acquire);
        let layout = entry.shape().layout();
        // SAFETY: this was the last reference, and the layout is the one it was allocated with.
        unsafe { alloc::dealloc(self.0.as_ptr().cast(), layout) };
    }
}

impl AsRef<[u8]> for EntryRef {
    /// The value, so that a reply can carry it by reference.
    fn as_ref(&self) -> &[u8] {
        self.get().value()
    }
}

/// A view of an entry that somebody keeps alive for `'a`.
#[derive(Clone, Copy)]
pub struct Entry<'a> {
    at: NonNull<Header>,
    life: PhantomData<&'a EntryRef>,
}

impl<'a> Entry<'a> {
    /// The view of an entry that a table slot holds.
    ///
    /// # Safety
    /// `bits` comes from [`EntryRef::into_bits`], and the slot keeps its reference for `'a`.
    #[inline]
    pub(super) unsafe fn from_bits(bits: u64) -> Self {
        let at = ptr::with_exposed_provenance_mut::<Header>(bits as usize);
        // SAFETY: the caller's duty; into_bits never makes null.
        Self { at: unsafe { NonNull::new_unchecked(at) }, life: PhantomData }
    }

    /// Starts loading it into the processor's cache, if it is small.
    #[inline]
    pub fn prefetch(self) {
        prefetch_entry(self.at.as_ptr().cast());
    }

    /// Whether the entry stands at this address.
    pub(super) fn is_at(self, address: *const u8) -> bool {
        ptr::eq(self.at.as_ptr().cast(), address)
    }

    #[inline]
    fn header(self) -> &'a Header {
        // SAFETY: the entry is alive for 'a.
        unsafe { self.at.as_ref() }
    }

    #[inline]
    fn word(self) -> u32 {
        self.header().word.load(Relaxed)
    }

    #[inline]
    fn bytes(self, offset: usize, len: usize) -> &'a [u8] {
        // SAFETY: callers pass parts of the entry's shape, which its allocation holds; they change
        // only through EntryMut, which excludes views.
        unsafe { slice::from_raw_parts(self.at.as_ptr().cast::<u8>().add(offset), len) }
    }

    /// A word behind the header, by its offset.
    #[inline]
    fn extra(self, offset: usize) -> NonNull<u8> {
        // SAFETY: callers pass offsets inside the allocation.
        unsafe { self.at.cast::<u8>().add(offset) }
    }

    #[inline]
    fn key_len(self, word: u32) -> usize {
        if word & LONG == 0 {
            return (self.header().time.load(Relaxed) & 0xffff) as usize;
        }
        let offset = HEADER + if word & KEPT != 0 { 8 } else { 0 };
        // SAFETY: LONG says that the key's length stands there, aligned to 4.
        unsafe { self.extra(offset).cast::<u32>().read() as usize }
    }

    #[inline]
    fn shape(self) -> Shape {
        let word = self.word();
        Shape::new(self.key_len(word), self.header().value_len as usize, word)
    }

    /// The key.
    #[inline]
    pub fn key(self) -> &'a [u8] {
        let shape = self.shape();
        self.bytes(shape.key, shape.key_len)
    }

    /// The value.
    #[inline]
    pub fn value(self) -> &'a [u8] {
        let shape = self.shape();
        self.bytes(shape.value(), shape.value_len)
    }

    /// The key, and behind it the value.
    pub fn key_and_value(self) -> &'a [u8] {
        let shape = self.shape();
        self.bytes(shape.key, shape.key_len + shape.value_len)
    }

    /// The bytes that the entry takes from the allocator.
    #[inline]
    pub fn size(self) -> usize {
        self.shape().layout().size()
    }

    /// When the data ends, in unix milliseconds; 0: never.
    #[inline]
    pub fn deadline(self) -> u64 {
        self.header().time.load(Relaxed) >> 16
    }

    /// Sets or clears (0) the deadline. Call it under the stripe's lock.
    pub fn set_deadline(self, deadline: u64) {
        let time = &self.header().time;
        let key_len = time.load(Relaxed) & 0xffff;
        time.store(deadline.min(MAX_DEADLINE) << 16 | key_len, Relaxed);
    }

    /// When the copy is of no more use, in unix milliseconds; 0: never.
    #[inline]
    pub fn kept_until(self) -> u64 {
        if self.word() & KEPT == 0 {
            return 0;
        }
        // SAFETY: KEPT says that the word stands there, aligned to 8; it never changes.
        unsafe { self.extra(HEADER).cast::<u64>().read() }
    }

    /// The access clock, if the entry keeps one.
    #[inline]
    pub fn access(self) -> Option<&'a AtomicU32> {
        let word = self.word();
        if word & ACCESS == 0 {
            return None;
        }
        let flag = |flag: u32, bytes: usize| if word & flag != 0 { bytes } else { 0 };
        let offset = HEADER + flag(KEPT, 8) + flag(LONG, 4);
        // SAFETY: ACCESS says that the word stands there, aligned to 4; it is only used as an atomic.
        Some(unsafe { self.extra(offset).cast::<AtomicU32>().as_ref() })
    }

    /// What a copy of this entry would carry.
    pub fn meta(self) -> Meta {
        Meta {
            deadline: self.deadline(),
            kept_until: self.kept_until(),
            access: self.access().map(|access| access.load(Relaxed)),
            raw: self.word() & RAW != 0,
        }
    }

    /// Another reference, unless there are about a thousand already.
    pub fn share(self) -> Option<EntryRef> {
        let word = &self.header().word;
        let taken = word.fetch_update(Relaxed, Relaxed, |word| {
            ((word & REFS) < MOST_REFS as u32).then_some(word + 1)
        });
        taken.ok().map(|_| EntryRef(self.at))
    }

    /// Notes a hit: the mark rises to `top` (at most 3); nothing is written when it is there. L1 calls it
    /// without the stripe's lock.
    #[inline]
    pub fn touch(self, top: u32) {
        let raised = |word: u32| ((word & MARK) < top * MARK_ONE).then_some(word + MARK_ONE);
        if raised(self.word()).is_some() {
            let _ = self.header().word.fetch_update(Relaxed, Relaxed, raised);
        }
    }

    /// The mark that hits left.
    #[inline]
    pub fn mark(self) -> u32 {
        (self.word() & MARK) / MARK_ONE
    }

    /// Sets the mark. Call it under the stripe's lock.
    pub fn set_mark(self, mark: u32) {
        self.change(MARK, mark * MARK_ONE);
    }

    /// Which eviction queue the entry stands in; 0: none.
    #[inline]
    pub fn queue(self) -> u32 {
        (self.word() & QUEUE) >> QUEUE_SHIFT
    }

    /// Notes the eviction queue. Call it under the stripe's lock.
    pub fn set_queue(self, queue: u32) {
        self.change(QUEUE, queue << QUEUE_SHIFT);
    }

    /// The bit that a rebuild of the queues flips, to see each entry once.
    pub fn parity(self) -> bool {
        self.word() & PARITY != 0
    }

    /// Sets the parity. Call it under the stripe's lock.
    pub fn set_parity(self, parity: bool) {
        self.change(PARITY, if parity { PARITY } else { 0 });
    }

    /// Whether the expiry wheel knows the entry.
    pub fn is_timed(self) -> bool {
        self.word() & TIMED != 0
    }

    /// Notes whether the expiry wheel knows the entry. Call it under the stripe's lock.
    pub fn set_timed(self, timed: bool) {
        self.change(TIMED, if timed { TIMED } else { 0 });
    }

    /// Whether L3 has a record of the entry as it is.
    #[inline]
    pub fn is_stored(self) -> bool {
        self.word() & STORED != 0
    }

    /// Notes whether L3 has a record of the entry as it is. Call it under the stripe's lock.
    pub fn set_stored(self, stored: bool) {
        self.change(STORED, if stored { STORED } else { 0 });
    }

    /// Whether a load that is to renew the copy is under way, or was refused.
    #[inline]
    pub fn is_renewing(self) -> bool {
        self.word() & RENEWING != 0
    }

    /// Notes whether the copy is being renewed. It needs no lock: one atomic step.
    pub fn set_renewing(self, renewing: bool) {
        let word = &self.header().word;
        if renewing {
            word.fetch_or(RENEWING, Relaxed);
        } else {
            word.fetch_and(!RENEWING, Relaxed);
        }
    }

    /// Whether both are the same entry, not only alike.
    pub fn is_same(self, other: Entry<'_>) -> bool {
        self.at == other.at
    }

    /// Whether the string was made by an edit.
    pub fn is_raw(self) -> bool {
        self.word() & RAW != 0
    }

    /// Marks the entry as replaced or gone, for those who still hold a reference.
    #[inline]
    pub fn kill(self) {
        if self.word() & REFS != 1 {
            self.header().word.fetch_or(DEAD, Release);
        }
    }

    /// Whether the entry was replaced or removed.
    pub fn is_dead(self) -> bool {
        self.header().word.load(Acquire) & DEAD != 0
    }

    /// Replaces the bits of `mask`; references and marks change without the lock, hence two atomic steps.
    fn change(self, mask: u32, bits: u32) {
        let word = &self.header().word;
        let clear = word.load(Relaxed) & mask & !bits;
        if clear != 0 {
            word.fetch_and(!clear, Relaxed);
        }
        if self.word() & bits != bits {
            word.fetch_or(bits, Relaxed);
        }
    }
}

/// An entry that nobody else refers to: its value may change in place.
pub struct EntryMut<'a> {
    at: NonNull<Header>,
    life: PhantomData<&'a mut EntryRef>,
}

impl<'a> EntryMut<'a> {
    /// Exclusive access to the entry of a table slot, if the slot holds the only reference.
    ///
    /// # Safety
    /// `bits` comes from [`EntryRef::into_bits`]; the slot keeps its reference, and nothing else is
    /// reached through the slot, for `'a`.
    pub(super) unsafe fn from_bits(bits: u64) -> Option<Self> {
        // SAFETY: the caller's duty.
        let entry = unsafe { Entry::<'a>::from_bits(bits) };
        // Acquire pairs with the release in drop: what former holders read happened before we write.
        let alone = entry.header().word.load(Acquire) & REFS == 1;
        alone.then_some(Self { at: entry.at, life: PhantomData })
    }

    /// A view.
    pub fn get(&self) -> Entry<'_> {
        Entry { at: self.at, life: PhantomData }
    }

    /// The value.
    pub fn value(&mut self) -> &mut [u8] {
        let shape = self.get().shape();
        // SAFETY: the value lies inside the allocation, and this is the only way to it.
        unsafe {
            let at = self.at.as_ptr().cast::<u8>().add(shape.value());
            slice::from_raw_parts_mut(at, shape.value_len)
        }
    }

    /// Changes the value's length within the entry's size class: new bytes are zero. False, and
    /// nothing changed, if the class is another.
    pub fn resize(&mut self, len: usize) -> bool {
        let old = self.get().shape();
        let new = Shape { value_len: len, ..old };
        if len > MAX_VALUE || new.layout() != old.layout() {
            return false;
        }
        // SAFETY: the layout holds the new length too; the header is ours alone.
        unsafe {
            if len > old.value_len {
                let end = self.at.as_ptr().cast::<u8>().add(old.value() + old.value_len);
                end.write_bytes(0, len - old.value_len);
            }
            (*self.at.as_ptr()).value_len = len as u32;
        }
        true
    }

    /// Notes that the string was, or was not, made by an edit.
    pub fn set_raw(&mut self, raw: bool) {
        self.get().change(RAW, if raw { RAW } else { 0 });
    }
}
