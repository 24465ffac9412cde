//! Machine architectures, in the words of those who name them.

/// An architecture that Linux containers run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arch {
    /// Rust's name (`x86_64`).
    rust: &'static str,
    /// Go's, and so the OCI's and a seccomp profile's conditions' (`amd64`).
    pub go: &'static str,
    /// libseccomp's (`SCMP_ARCH_X86_64`).
    pub seccomp: &'static str,
}

const ARCHS: [Arch; 10] = [
    Arch { rust: "x86_64", go: "amd64", seccomp: "SCMP_ARCH_X86_64" },
    Arch { rust: "aarch64", go: "arm64", seccomp: "SCMP_ARCH_AARCH64" },
    Arch { rust: "arm", go: "arm", seccomp: "SCMP_ARCH_ARM" },
    Arch { rust: "x86", go: "386", seccomp: "SCMP_ARCH_X86" },
    Arch { rust: "riscv64", go: "riscv64", seccomp: "SCMP_ARCH_RISCV64" },
    Arch { rust: "powerpc64", go: POWER, seccomp: POWER_SECCOMP },
    Arch { rust: "s390x", go: "s390x", seccomp: "SCMP_ARCH_S390X" },
    Arch { rust: "loongarch64", go: "loong64", seccomp: "SCMP_ARCH_LOONGARCH64" },
    Arch { rust: "mips64", go: "mips64le", seccomp: "SCMP_ARCH_MIPSEL64" },
    Arch { rust: "mips", go: "mipsle", seccomp: "SCMP_ARCH_MIPSEL" },
];

const POWER: &str = if cfg!(target_endian = "little") { "ppc64le" } else { "ppc64" };
const POWER_SECCOMP: &str = if cfg!(target_endian = "little") { "SCMP_ARCH_PPC64LE" } else { "SCMP_ARCH_PPC64" };

impl Arch {
    /// The one that this program was built for.
    pub fn native() -> Option<Self> {
        ARCHS.into_iter().find(|arch| arch.rust == std::env::consts::ARCH)
    }

    /// The one of a Go name.
    #[cfg(test)]
    pub fn of_go(name: &str) -> Option<Self> {
        ARCHS.into_iter().find(|arch| arch.go == name)
    }
}
