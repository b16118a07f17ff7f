//! How much memory a process has for itself, and how much it shares.
//!
//! Invariant: the kernel's word (`smaps_rollup`, since 4.14); without it, nothing is known and nobody is blamed.

/// Private and shared memory of this process, in bytes.
pub(crate) fn of_this_process() -> Option<(u64, u64)> {
    parse(&std::fs::read_to_string("/proc/self/smaps_rollup").ok()?)
}

/// The same of another one, which must belong to the same user.
pub(crate) fn of_process(pid: u32) -> Option<(u64, u64)> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?)
}

/// Lines like `Private_Dirty:        12 kB`. Huge pages of their own file system count as well.
fn parse(text: &str) -> Option<(u64, u64)> {
    let sum = |prefix: &str| {
        let lines = text.lines().filter(|line| line.starts_with(prefix));
        lines
            .map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
            .sum::<Option<u64>>()
    };
    Some((sum("Private_")? << 10, sum("Shared_")? << 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_summed_up() {
        let text = "00400000-7fff [rollup]\nRss: 9 kB\nShared_Clean: 1 kB\nShared_Dirty: 2 kB\n\
                    Private_Clean: 3 kB\nPrivate_Dirty: 4 kB\nShared_Hugetlb: 5 kB\nPrivate_Hugetlb: 6 kB\n";
        assert_eq!(parse(text), Some((13 << 10, 8 << 10)));
        assert_eq!(parse("Private_Dirty: many"), None);
        let (private, _) = of_this_process().expect("this kernel tells");
        assert!(private > 0);
    }
}
