//! The permission to use AMX tiles, which a process asks for before their first use, and that first
//! use: the kernel gives a thread room for tile data only when it executes an instruction for them
//! (Documentation/arch/x86/xstate.rst).

use std::arch::x86_64::__cpuid_count;

use super::{decode, encode, registers, Answer, Part, PartError, Scope, Told, View};
use crate::capabilities::Area::Processes;
use crate::capabilities::Capability;
use crate::tracer::inject::{Arg, Program};

/// Commands of arch_prctl(2).
const ARCH_GET_XCOMP_PERM: u64 = 0x1022;
const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
/// XFEATURE_XTILEDATA of the kernel's arch/x86/include/asm/fpu/types.h.
const TILE_DATA: u64 = 18;

/// What the process may use.
pub struct Tiles;

impl Part for Tiles {
    fn name(&self) -> &'static str {
        "AMX tiles"
    }

    fn scope(&self) -> Scope {
        Scope::Process
    }

    fn capabilities(&self) -> &'static [Capability] {
        const { &[Capability::moves(Processes, "amx", "AMX tiles")] }
    }

    fn ask(&self, _view: &View, program: &mut Program) -> Result<Answer, PartError> {
        let asked = has_tiles().then(|| {
            let at = program.data(&[0; 8]);
            let args = [ARCH_GET_XCOMP_PERM.into(), Arg::Data(at)];
            (at, program.call(libc::SYS_arch_prctl, "ARCH_GET_XCOMP_PERM", &args))
        });
        Ok(Box::new(move |_, outcome| {
            // A kernel without the call has no tiles either.
            let may = asked.filter(|(_, row)| outcome.raw(*row) == 0);
            let may = may.is_some_and(|(at, _)| outcome.int(at) & 1 << TILE_DATA != 0);
            encode("AMX tiles", &may)
        }))
    }

    fn tell(&self, state: &[u8], _to: &Told, program: &mut Program) -> Result<(), PartError> {
        if decode(self.name(), state)? {
            let args = [ARCH_REQ_XCOMP_PERM.into(), TILE_DATA.into()];
            program.call(libc::SYS_arch_prctl, "ARCH_REQ_XCOMP_PERM", &args);
        }
        Ok(())
    }
}

/// Has this CPU tiles (AMX-TILE, Intel SDM vol. 2, CPUID leaf 7)?
fn has_tiles() -> bool {
    __cpuid_count(7, 0).edx & 1 << 24 != 0
}

/// Has a thread with this extended state tile data?
#[must_use]
pub fn are_in_use(extended: &[u8]) -> bool {
    registers::components(extended) & 1 << TILE_DATA != 0
}
