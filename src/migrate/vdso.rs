//! The vdso: code and data that the kernel maps into every process (vdso(7)).
//!
//! A target whose vdso is like the source's gets its own moved to the old addresses. One
//! whose vdso differs (another kernel) keeps its own at a free place, and the old text, which
//! the program's libc has pointers into, gets a jump at each symbol.

use std::io;

use goblin::elf::Elf;

use super::resource::memory::{is_special, Backing, MmImage};
use super::restore::RestoreError;
use crate::tracer::inject;
use crate::tracer::memory::{self, Vma};

type Result<T> = std::result::Result<T, RestoreError>;

/// This kernel's vdso as this process, and every one forked from it, has it.
#[derive(Debug)]
pub struct Vdso {
    start: u64,
    text: Vec<u8>,
    /// `[vdso]`, `[vvar]` and others: name, address, bytes.
    parts: Vec<(String, u64, u64)>,
    /// The job's clocks are not this kernel's: functions of its vdso become system calls.
    apart: bool,
}

impl Vdso {
    /// Looks at the own process.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn own() -> io::Result<Self> {
        Self::of(std::process::id() as i32)
    }

    /// As a program that has just been executed has it, for a job that asks the kernel for the
    /// time.
    ///
    /// # Errors
    /// When its /proc or memory cannot be read.
    pub fn apart(pid: i32) -> io::Result<Self> {
        Ok(Self { apart: true, ..Self::of(pid)? })
    }

    /// As a process has it.
    ///
    /// # Errors
    /// When its /proc or memory cannot be read.
    pub fn of(pid: i32) -> io::Result<Self> {
        let vmas = memory::maps(pid)?;
        let parts: Vec<_> = vmas
            .iter()
            .filter(|v| is_special(v) && v.path != "[vsyscall]")
            .map(|v| (v.path.clone(), v.start, v.len()))
            .collect();
        let (start, text) = match memory::vdso(&vmas) {
            Some(v) => {
                let mut text = vec![0; v.len() as usize];
                inject::read_exact(pid, v.start, &mut text)?;
                (v.start, text)
            }
            None => (0, Vec::new()),
        };
        Ok(Self { start, text, parts, apart: false })
    }

    /// Its code.
    #[must_use]
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// Where in its code a `syscall` instruction is.
    #[must_use]
    pub fn syscall_offset(&self) -> Option<u64> {
        self.text.windows(2).position(|w| w == [0x0f, 0x05]).map(|at| at as u64)
    }

    /// A `syscall` instruction in it.
    #[must_use]
    pub fn syscall_insn(&self) -> Option<u64> {
        Some(self.start + self.syscall_offset()?)
    }

    /// The image's vdso has the same text, and its parts lie to each other as ours do.
    #[must_use]
    pub fn is_like(&self, image: &MmImage) -> bool {
        let forced = std::env::var_os("VOSRUN_TEST_FOREIGN_VDSO").is_some();
        !forced && !self.apart && image.vdso == self.text && self.shift(image).is_some()
    }

    /// Has the image a vdso at all?
    fn wanted(image: &MmImage) -> impl Iterator<Item = (&str, u64, u64)> {
        image.mappings.iter().filter_map(|m| match &m.backing {
            Backing::Special(name) => Some((name.as_str(), m.start, m.len())),
            _ => None,
        })
    }

    /// By how much all parts move, when it is the same for all.
    fn shift(&self, image: &MmImage) -> Option<u64> {
        let mut shifts = self.parts.iter().map(|(name, start, len)| {
            let (_, to, _) = Self::wanted(image).find(|(n, _, l)| n == name && l == len)?;
            Some(to.wrapping_sub(*start))
        });
        let first = shifts.next()??;
        shifts.all(|s| s == Some(first)).then_some(first)
    }

    /// Tells `remap` what to move where (old, bytes, new): to the image's addresses when the
    /// vdso is like ours, through a free place because the two may overlap; else out of the
    /// way of the image's mappings.
    ///
    /// # Errors
    /// Those of `take` and `remap`.
    pub fn place(
        &self,
        image: &MmImage,
        now: &[Vma],
        mut take: impl FnMut(u64) -> Result<u64>,
        mut remap: impl FnMut(u64, u64, u64) -> Result<()>,
    ) -> Result<()> {
        let Some(low) = self.parts.iter().map(|p| p.1).min() else { return Ok(()) };
        let span = self.parts.iter().map(|p| p.1 + p.2).max().unwrap_or(low) - low;
        debug_assert!(now.iter().any(|v| v.start == low));
        let aside = take(span)?;
        for (_, start, len) in &self.parts {
            remap(*start, *len, aside + (start - low))?;
        }
        if self.is_like(image) {
            let shift = self.shift(image).unwrap_or(0);
            for (_, start, len) in &self.parts {
                remap(aside + (start - low), *len, start.wrapping_add(shift))?;
            }
        }
        Ok(())
    }
}

/// Symbols of a vdso: name and offset of each function.
fn functions(text: &[u8]) -> Vec<(String, u64)> {
    let Ok(elf) = Elf::parse(text) else { return Vec::new() };
    let symbols = elf.dynsyms.iter().filter(goblin::elf::Sym::is_function);
    symbols
        .filter_map(|s| Some((elf.dynstrtab.get_at(s.st_name)?.to_owned(), s.st_value)))
        .collect()
}

/// `mov r11, target; jmp r11`: r11 is free at the entry of a function.
fn jump(target: u64) -> Vec<u8> {
    let mut code = vec![0x49, 0xbb];
    code.extend_from_slice(&target.to_le_bytes());
    code.extend_from_slice(&[0x41, 0xff, 0xe3]);
    code
}

/// `mov rax, -ENOSYS; ret`: libc makes the system call instead.
const NO_SUCH_CALL: [u8; 8] = [0x48, 0xc7, 0xc0, 0xda, 0xff, 0xff, 0xff, 0xc3];

/// A system call with the arguments of the function.
fn system_call(nr: i64) -> [u8; 8] {
    let [a, b, c, d] = (nr as u32).to_le_bytes();
    // mov eax, nr; syscall; ret
    [0xb8, a, b, c, d, 0x0f, 0x05, 0xc3]
}

/// The call that a function of a vdso makes in user space.
fn call_of(name: &str) -> Option<i64> {
    Some(match name.strip_prefix("__vdso_").unwrap_or(name) {
        "clock_gettime" => libc::SYS_clock_gettime,
        "clock_getres" => libc::SYS_clock_getres,
        "gettimeofday" => libc::SYS_gettimeofday,
        "time" => libc::SYS_time,
        "getcpu" => libc::SYS_getcpu,
        "getrandom" => libc::SYS_getrandom,
        _ => return None,
    })
}

/// The old text with a system call at each function.
fn with_calls(old: &[u8]) -> Vec<u8> {
    let mut text = old.to_vec();
    for (name, at) in functions(old) {
        let code = call_of(&name).map_or(NO_SUCH_CALL, system_call);
        if let Some(place) = text.get_mut(at as usize..(at as usize).saturating_add(code.len())) {
            place.copy_from_slice(&code);
        }
    }
    text
}

impl Vdso {
    /// What takes the place of the text of a vdso that is not like this one, which is at `start`.
    #[must_use]
    pub fn instead_of(&self, old: &[u8], start: u64) -> Vec<u8> {
        match self.apart {
            true => with_calls(old),
            false => with_jumps(old, &self.text, start),
        }
    }
}

/// The old text with a jump into the new vdso at each function.
#[must_use]
pub fn with_jumps(old: &[u8], new: &[u8], new_start: u64) -> Vec<u8> {
    let mut text = old.to_vec();
    let targets = functions(new);
    for (name, at) in functions(old) {
        let target = targets.iter().find(|(n, _)| *n == name).map(|(_, offset)| new_start + offset);
        let code = target.map_or_else(|| NO_SUCH_CALL.to_vec(), jump);
        let end = (at as usize).saturating_add(code.len());
        if let Some(place) = text.get_mut(at as usize..end) {
            place.copy_from_slice(&code);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_become_system_calls() {
        let own = Vdso::own().unwrap();
        let text = with_calls(&own.text);
        let all = functions(&own.text);
        let (_, at) = all.iter().find(|(name, _)| name == "__vdso_clock_gettime").unwrap();
        let code = &text[*at as usize..*at as usize + 8];
        assert_eq!(code, system_call(libc::SYS_clock_gettime));
    }

    #[test]
    fn every_function_of_the_old_text_jumps() {
        let own = Vdso::own().unwrap();
        let all = functions(&own.text);
        assert!(all.iter().any(|(name, _)| name == "__vdso_clock_gettime"), "{all:?}");
        let text = with_jumps(&own.text, &own.text, 0x1234_0000);
        for (name, at) in all {
            let code = &text[at as usize..at as usize + 13];
            let same_place = functions(&own.text).iter().any(|(n, a)| *n != name && *a == at);
            assert!(code == jump(0x1234_0000 + at) || same_place, "{name}");
        }
    }
}
