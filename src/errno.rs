//! What a system call answers that is made without a wrapper of std or nix.

use std::io;

use nix::errno::ErrnoSentinel;

/// The result of a call that gives -1 when it fails and leaves the reason in errno(3).
/// Allocates nothing: it may be used between fork(2) and execve(2).
///
/// # Errors
/// The reason. nix's own `Errno::result` loses the numbers that it has no name for.
pub fn check<T: ErrnoSentinel + PartialEq>(result: T) -> io::Result<T> {
    if result == T::sentinel() {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;

    #[test]
    fn minus_one_is_the_reason_and_all_else_a_result() {
        const ENOTSUPP: i32 = 524;
        for reason in [libc::ENOENT, ENOTSUPP] {
            Errno::set_raw(reason);
            assert_eq!(check(-1_i32).unwrap_err().raw_os_error(), Some(reason));
            assert_eq!(check(-1_isize).unwrap_err().raw_os_error(), Some(reason));
        }
        assert_eq!(check(-2_i64).unwrap(), -2);
        assert_eq!(check(0_i32).unwrap(), 0);
    }
}
