//! Lists of system calls for a stopped thread, and what they answer.

use std::io;

use super::{result_of, word, InjectError, Result};

/// An argument of a call in a [`Program`].
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    Num(u64),
    /// Address of the data put in with [`Program::data`].
    Data(Data),
}

impl From<u64> for Arg {
    fn from(n: u64) -> Self {
        Self::Num(n)
    }
}

/// A piece of a program's data.
#[derive(Debug, Clone, Copy)]
pub struct Data(usize, usize);

impl Data {
    /// Bytes from the begin of the program's data.
    #[must_use]
    pub fn offset(self) -> u64 {
        self.0 as u64
    }
}

/// A call of a [`Program`].
#[derive(Debug)]
struct Call {
    nr: i64,
    what: &'static str,
    args: [Arg; 6],
    /// The program goes on as well without it.
    optional: bool,
}

/// A list of system calls with the data their arguments point to.
#[derive(Debug, Default)]
pub struct Program {
    calls: Vec<Call>,
    data: Vec<u8>,
}

impl Program {
    /// Adds data (16-byte aligned) that calls may point to, read or written.
    pub fn data(&mut self, bytes: &[u8]) -> Data {
        let at = self.data.len().next_multiple_of(16);
        self.data.resize(at, 0);
        self.data.extend_from_slice(bytes);
        Data(at, bytes.len())
    }

    /// Adds a call; missing arguments are 0. Gives its row.
    pub fn call(&mut self, nr: i64, what: &'static str, args: &[Arg]) -> usize {
        self.add(nr, what, args, false)
    }

    /// Adds a call that the kernel may refuse; [`Outcome::refused`] tells.
    pub fn call_if_granted(&mut self, nr: i64, what: &'static str, args: &[Arg]) {
        self.add(nr, what, args, true);
    }

    /// Adds the call that opens a file, which the program's children do not get; `path` needs no null.
    /// Gives its row.
    pub fn open(&mut self, what: &'static str, path: &[u8], flags: i32) -> usize {
        let path = Arg::Data(self.data(&[path, b"\0"].concat()));
        let flags = (flags | libc::O_CLOEXEC) as u64;
        self.call(libc::SYS_openat, what, &[Arg::Num(libc::AT_FDCWD as u64), path, flags.into()])
    }

    fn add(&mut self, nr: i64, what: &'static str, some: &[Arg], optional: bool) -> usize {
        let mut args = [Arg::Num(0); 6];
        args[..some.len()].copy_from_slice(some);
        self.calls.push(Call { nr, what, args, optional });
        self.calls.len() - 1
    }

    /// Number of calls.
    #[must_use]
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// No call in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Bytes it needs behind the stub's code.
    #[must_use]
    pub fn size(&self) -> usize {
        self.data.len().next_multiple_of(64) + self.calls.len() * 64
    }

    /// Data and table, as they stand in the tracee at `base`.
    pub(super) fn assemble(&self, base: u64) -> (Vec<u8>, u64) {
        let table = self.data.len().next_multiple_of(64);
        let mut bytes = self.data.clone();
        bytes.resize(table, 0);
        for Call { nr, args, .. } in &self.calls {
            bytes.extend_from_slice(&nr.to_le_bytes());
            for arg in args {
                let word = match arg {
                    Arg::Num(n) => *n,
                    Arg::Data(d) => base + d.0 as u64,
                };
                bytes.extend_from_slice(&word.to_le_bytes());
            }
            bytes.extend_from_slice(&[0; 8]);
        }
        (bytes, base + table as u64)
    }

    /// What it has answered in thread `tid`, by its data and table after the calls; the table
    /// begins so many bytes behind the begin.
    pub(super) fn answered(self, tid: i32, mut bytes: Vec<u8>, table: usize) -> Outcome {
        let results = self.calls.iter().enumerate().map(|(row, call)| {
            let value = word(&bytes, table + row * 64 + 56) as i64;
            Answered { value, what: call.what, optional: call.optional }
        });
        let results = results.collect();
        bytes.truncate(self.data.len());
        Outcome { tid, results, data: bytes }
    }

    /// What one without calls has answered in thread `tid`.
    pub(super) fn unasked(self, tid: i32) -> Outcome {
        Outcome { tid, results: Vec::new(), data: self.data }
    }
}

/// What a [`Program`] answered.
#[derive(Debug)]
pub struct Outcome {
    tid: i32,
    results: Vec<Answered>,
    data: Vec<u8>,
}

#[derive(Debug)]
struct Answered {
    value: i64,
    what: &'static str,
    optional: bool,
}

impl Outcome {
    /// The raw result of a row.
    #[must_use]
    pub fn raw(&self, row: usize) -> i64 {
        self.results[row].value
    }

    /// The result of a row.
    ///
    /// # Errors
    /// [`InjectError::Call`] with the errno.
    pub fn get(&self, row: usize) -> Result<u64> {
        let Answered { value, what, .. } = self.results[row];
        result_of(value).map_err(|source| InjectError::Call { tid: self.tid, what, source })
    }

    /// Every call succeeded that had to.
    ///
    /// # Errors
    /// The first failure.
    pub fn all_ok(&self) -> Result<()> {
        let rows = (0..self.results.len()).filter(|row| !self.results[*row].optional);
        rows.into_iter().try_for_each(|row| self.get(row).map(drop))
    }

    /// The calls of [`Program::call_if_granted`] that the kernel has refused, and why.
    pub fn refused(&self) -> impl Iterator<Item = (&'static str, io::Error)> + '_ {
        let optional = self.results.iter().filter(|answered| answered.optional);
        optional.filter_map(|a| result_of(a.value).err().map(|e| (a.what, e)))
    }

    /// The first four bytes of data after the calls, as a number.
    #[must_use]
    pub fn int(&self, d: Data) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.data(d)[..4]);
        u32::from_ne_bytes(bytes)
    }

    /// Data after the calls.
    #[must_use]
    pub fn data(&self, d: Data) -> &[u8] {
        &self.data[d.0..d.0 + d.1]
    }
}
