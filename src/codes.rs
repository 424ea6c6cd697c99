//! Stable codes of refusals and failures, each with the text of `vosrun explain CODE`.

/// One code.
#[derive(Debug, Clone, Copy)]
pub struct Code {
    pub code: &'static str,
    /// One line: what it means.
    pub title: &'static str,
    /// Why it is so and what can be done.
    pub text: &'static str,
}

/// Every code the program can print, in alphabetical order.
pub const CODES: &[Code] = &[
    Code {
        code: "VOS-ABI-32",
        title: "a 32-bit program",
        text: "The process runs i386 or x32 code. It runs under vosrun as always, but vosrun moves x86-64 programs only.\nWay out: run the 64-bit build of the program.",
    },
];

/// Finds a code, in any letter case.
#[must_use]
pub fn find(code: &str) -> Option<&'static Code> {
    CODES.iter().find(|c| c.code.eq_ignore_ascii_case(code))
}
