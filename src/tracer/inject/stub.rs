//! The code that runs a [`Program`](super::Program) in a process, and its mapping there.

use super::{trace, write_all, Remote, Result, Single};
use crate::tracer::memory::PAGE;
use crate::tracer::raw;

/// The batch stub: runs the table at r12 (8 words a row: number, six arguments, result) of
/// r13 rows, then traps. Position-independent, no stack, no other memory.
const STUB: [u8; 72] = [
    0x49, 0x8b, 0x04, 0x24, // batch: mov rax,[r12]
    0x49, 0x8b, 0x7c, 0x24, 0x08, // mov rdi,[r12+8]
    0x49, 0x8b, 0x74, 0x24, 0x10, // mov rsi,[r12+16]
    0x49, 0x8b, 0x54, 0x24, 0x18, // mov rdx,[r12+24]
    0x4d, 0x8b, 0x54, 0x24, 0x20, // mov r10,[r12+32]
    0x4d, 0x8b, 0x44, 0x24, 0x28, // mov r8,[r12+40]
    0x4d, 0x8b, 0x4c, 0x24, 0x30, // mov r9,[r12+48]
    0x0f, 0x05, // syscall
    0x49, 0x89, 0x44, 0x24, 0x38, // mov [r12+56],rax
    0x49, 0x83, 0xc4, 0x40, // add r12,64
    0x49, 0xff, 0xcd, // dec r13
    0x75, 0xce, // jnz batch
    0xcc, // int3
    0xb8, 0x22, 0x00, 0x00, 0x00, // idle: mov eax,SYS_pause
    0x0f, 0x05, // syscall
    0xeb, 0xf7, // jmp idle
    0xc4, 0xe2, 0x78, 0x49, 0x07, // tiles: ldtilecfg [rdi]
    0xc4, 0xe2, 0x7b, 0x49, 0xc0, // tilezero tmm0
    0x0f, 0x05, // syscall
];
/// Offset of the `syscall` instruction of the batch loop.
const STUB_SYSCALL: u64 = 0x22;
/// Offset of the loop that pauses for ever, right behind the `int3`.
const STUB_IDLE: u64 = 0x33;
/// Offset of the first use of an AMX tile, before a `syscall` instruction.
const STUB_TILES: u64 = 0x3c;
/// Room for a siginfo, at the begin of the data.
const STUB_INFO: u64 = 128;

/// Bytes of a stub mapping.
pub const STUB_LEN: u64 = 256 << 10;

/// The stub's mapping in a process.
#[derive(Debug, Clone, Copy)]
pub struct Stub {
    pid: i32,
    /// First address, where its code is.
    pub base: u64,
    /// Where its data begins: behind the code, or on a page of its own. First room for a siginfo.
    pub(super) room: u64,
}

impl Stub {
    /// Maps the stub by one call of `remote`; anywhere, or at `at`, which must be free.
    ///
    /// # Errors
    /// When mmap(2) or the write into it fails.
    pub fn map(remote: &mut Remote, insn: u64, at: Option<u64>) -> Result<Self> {
        const CODE: u64 = STUB.len().next_multiple_of(64) as u64;
        let mut foreign = Vec::new();
        let mut mmap = |prot: i32| {
            let fixed = if at.is_some() { libc::MAP_FIXED_NOREPLACE } else { 0 };
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed;
            let args = [at.unwrap_or(0), STUB_LEN, prot as u64, flags as u64, u64::MAX, 0];
            let call = Single { insn, nr: libc::SYS_mmap, what: "mmap of the stub", args };
            remote.call_at_once(&call, &mut foreign)
        };
        let stub = match mmap(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) {
            Ok(base) => {
                let stub = Self { pid: remote.tid, base, room: base + CODE };
                stub.write(base, &STUB)?;
                stub
            }
            Err(e) if e.is(libc::EACCES) => {
                let base = mmap(libc::PROT_READ | libc::PROT_EXEC)?;
                Self::divide(remote, insn, base)?
            }
            Err(e) => return Err(e),
        };
        foreign.iter().try_for_each(|info| remote.queue(&stub, info, false))?;
        Ok(stub)
    }

    /// Takes it out of the process by a call at the `syscall` instruction `insn`; the thread stays
    /// borrowed.
    ///
    /// # Errors
    /// When the thread is gone or the call fails.
    pub fn unmap(&self, remote: &mut Remote, insn: u64) -> Result<()> {
        let Single { nr, what, args, .. } = self.unmapping(insn);
        remote.call(insn, nr, what, args).map(drop)
    }

    pub(super) fn unmapping(&self, insn: u64) -> Single {
        let args = [self.base, STUB_LEN, 0, 0, 0, 0];
        Single { insn, nr: libc::SYS_munmap, what: "munmap of the stub", args }
    }

    /// Nothing may be written to and executed in this process (PR_SET_MDWE of prctl(2), or a
    /// security module): the code gets a page of its own, which the tracer alone writes to.
    fn divide(remote: &mut Remote, insn: u64, base: u64) -> Result<Self> {
        let room = base + PAGE;
        let prot = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let args = [room, STUB_LEN - PAGE, prot, 0, 0, 0];
        remote.call(insn, libc::SYS_mprotect, "mprotect of the stub", args)?;
        for (at, piece) in (base..).step_by(8).zip(STUB.chunks(8)) {
            let mut eight = [0; 8];
            eight[..piece.len()].copy_from_slice(piece);
            trace(remote.tid, "write into the stub", raw::poke(remote.tid, at, eight))?;
        }
        Ok(Self { pid: remote.tid, base, room })
    }

    pub(super) fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        trace(self.pid, "write into the stub", write_all(self.pid, at, bytes))
    }

    /// Address of the data of a program that runs from the begin of the stub's room.
    #[must_use]
    pub fn data(&self) -> u64 {
        self.room + STUB_INFO
    }

    /// Bytes of programs that it has room for.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.base + STUB_LEN - self.data()
    }

    /// Address of a `syscall` instruction.
    #[must_use]
    pub fn syscall_insn(&self) -> u64 {
        self.base + STUB_SYSCALL
    }

    /// Has a thread use an AMX tile, for which its process has the permission: the kernel gives it
    /// room for tile data then, which may be set from there on. Its registers of tiles are changed.
    ///
    /// # Errors
    /// When the thread dies of it or cannot be run.
    pub fn use_tiles(&self, remote: &mut Remote) -> Result<()> {
        // Palette 1, and one row of 64 bytes in tile 0 (Intel SDM vol. 2, LDTILECFG).
        let mut config = [0; 64];
        (config[0], config[16], config[48]) = (1, 64, 1);
        self.write(self.data(), &config)?;
        let args = [self.data(), 0, 0, 0, 0, 0];
        let tiles = self.base + STUB_TILES;
        remote.call(tiles, libc::SYS_getpid, "the first use of an AMX tile", args).map(drop)
    }

    /// Address of the loop that pauses for ever.
    #[must_use]
    pub fn idle(&self) -> u64 {
        self.base + STUB_IDLE
    }
}
