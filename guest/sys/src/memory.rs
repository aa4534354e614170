//! How the allocator deals with memory that is no longer used.

/// Has the allocator give large blocks back to the kernel as soon as they are freed, and share its
/// pools between threads. By itself it keeps what was once asked for in large blocks, which in a
/// process that relays streams is megabytes for ever.
pub fn return_freed_memory() {
    // Where there is no such allocator, there is nothing to be set.
    #[cfg(target_env = "gnu")]
    // SAFETY: the calls set numbers of the allocator; no other thread runs yet, or may run.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 256 << 10);
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}
