//! The name of a process in `ps`.

use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::sync::OnceLock;

use nix::libc;

/// Shows `title` in `ps`, as the command line where the kernel allows it and as the process's name,
/// which holds 15 bytes, in any case.
pub(crate) fn set_title(title: &str) {
    let short = &title[..title.floor_char_boundary(15)];
    let Ok(name) = CString::new(short) else { return };
    // A process that cannot be named works all the same.
    let _ = rustix::thread::set_name(&name);
    let Ok(line) = CString::new(title) else { return };
    // For as long as the process lives.
    set_command_line(Box::leak(line.into_boxed_c_str()).to_bytes_with_nul());
}

/// The title of a worker to come, so that the worker itself, which shows it, has nothing to write.
pub(crate) struct Title {
    /// What fits in a process's name, which is here as well so that no other page need be looked at.
    short: CString,
    /// Ends with zeros.
    text: [u8; 128],
    /// Where the number stands.
    at: usize,
}

impl Title {
    /// At most 80 bytes of it are shown.
    pub(crate) fn new(prefix: &str) -> Self {
        let prefix = &prefix[..prefix.floor_char_boundary(80)];
        let short = CString::new(&prefix[..prefix.floor_char_boundary(15)]).unwrap_or_default();
        let mut text = [0; 128];
        text[..prefix.len()].copy_from_slice(prefix.as_bytes());
        Self { short, text, at: prefix.len() }
    }

    /// Puts the number in brackets behind the name.
    pub(crate) fn set_number(&mut self, number: u64) {
        let mut rest = &mut self.text[self.at..];
        // There is room for the longest.
        let _ = write!(rest, "({number})\0");
    }

    /// Shows it for as long as it stays where it is.
    pub(crate) fn show(&self) {
        let _ = rustix::thread::set_name(&self.short);
        let length = self.text.iter().position(|&byte| byte == 0).unwrap_or(0) + 1;
        set_command_line(&self.text[..length]);
    }
}

/// The kernel's `struct prctl_mm_map`.
#[repr(C)]
struct MemoryMap {
    start_code: u64,
    end_code: u64,
    start_data: u64,
    end_data: u64,
    start_brk: u64,
    brk: u64,
    start_stack: u64,
    arg_start: u64,
    arg_end: u64,
    env_start: u64,
    env_end: u64,
    auxv: u64,
    auxv_size: u32,
    exe_fd: u32,
}

/// Points the kernel at `line` instead of the arguments that the program was started with. The
/// arguments themselves stay as they are. The kernel reads it whenever somebody asks.
fn set_command_line(line: &[u8]) -> Option<()> {
    // A worker's memory is laid out as its server's is, and reading this takes longer than a fork.
    static LAYOUT: OnceLock<Option<Layout>> = OnceLock::new();
    let layout = LAYOUT.get_or_init(Layout::read).as_ref()?;
    let (start, length) = (line.as_ptr().addr() as u64, line.len() as u64);
    let map = MemoryMap {
        start_code: layout.code.0,
        end_code: layout.code.1,
        start_data: layout.data.0,
        end_data: layout.data.1,
        start_brk: layout.start_brk,
        // SAFETY: asking for a growth of nothing only reads the current end.
        brk: unsafe { libc::sbrk(0) } as u64,
        start_stack: layout.start_stack,
        arg_start: start,
        arg_end: start + length,
        env_start: layout.env.0,
        env_end: layout.env.1,
        auxv: 0,
        auxv_size: 0,
        exe_fd: u32::MAX,
    };
    let (what, which) = (libc::PR_SET_MM as libc::c_long, libc::PR_SET_MM_MAP as libc::c_long);
    // SAFETY: the kernel copies the structure and checks every address in it; all but the two of
    // the arguments are what it has already.
    unsafe {
        libc::syscall(libc::SYS_prctl, what, which, &raw const map, size_of_val(&map), 0_usize)
    };
    Some(())
}

/// Where the parts of this process lie, of which all but the arguments must be set to what they are.
struct Layout {
    code: (u64, u64),
    data: (u64, u64),
    start_brk: u64,
    start_stack: u64,
    env: (u64, u64),
}

impl Layout {
    fn read() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The process's name stands in brackets and may itself hold brackets and blanks; fields are
        // counted from the third, which follows it.
        let (_, fields) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            code: (field(26)?, field(27)?),
            data: (field(45)?, field(46)?),
            start_brk: field(47)?,
            start_stack: field(28)?,
            env: (field(50)?, field(51)?),
        })
    }
}
