//! Peak memory of the process, huge pages.

/// Largest resident memory so far, MB of 2²⁰ bytes; 0 where the system does not say.
#[cfg(not(target_os = "macos"))]
pub fn peak_rss_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kb = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kb.map_or(0.0, |kb| kb / 1024.0)
}

/// As on Linux. Type-checked, not run.
#[cfg(target_os = "macos")]
pub fn peak_rss_mb() -> f64 {
    // SAFETY: a structure of integers, for which zeros are values.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the call writes one such structure to the address of one.
    let status = unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
    // macOS counts bytes, where Linux counts KB.
    if status == 0 { usage.ru_maxrss as f64 / f64::from(1 << 20) } else { 0.0 }
}

/// Asks the system to move the memory of `values` into huge pages, for data that is read repeatedly from end to end: with pages
/// of 4 KB, finding them costs a decode step a tenth of its time.
///
/// Linux from 6.1 on does it at once, whatever `transparent_hugepage/enabled` says; elsewhere nothing happens.
#[cfg(target_os = "linux")]
pub fn move_into_huge_pages<T>(values: &[T]) {
    const HUGE: usize = 2 << 20;
    let range = values.as_ptr_range();
    for block in range.start as usize / HUGE..(range.end as usize).div_ceil(HUGE) {
        // A block at the edge of a mapping cannot be moved; it stays as it is.
        // SAFETY: the advice changes where pages lie, not their content, here and for other data in the first and last block.
        let _ = unsafe { libc::madvise((block * HUGE) as *mut libc::c_void, HUGE, libc::MADV_COLLAPSE) };
    }
}

/// As on Linux, where it does something.
#[cfg(not(target_os = "linux"))]
pub fn move_into_huge_pages<T>(_: &[T]) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_is_of_this_process() {
        assert!(peak_rss_mb() > 1.0);
    }

    #[test]
    fn values_that_were_moved_are_the_same() {
        let values: Vec<u32> = (0..3 << 20).collect();
        move_into_huge_pages(&values);
        move_into_huge_pages(&values[5..6]);
        move_into_huge_pages::<f32>(&[]);
        assert!(values.iter().copied().eq(0..3 << 20));
    }
}
