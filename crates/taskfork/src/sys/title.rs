//! The name of a process in `ps`.

use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::sync::OnceLock;

/// Shows `title` in `ps`: as the process's name, cut to 15 bytes, and as the command line if the kernel allows
/// that.
pub(crate) fn set_title(title: &str) {
    let short = &title[..title.floor_char_boundary(15)];
    let Ok(name) = CString::new(short) else { return };
    // The title is only for people, so an error is ignored.
    let _ = rustix::thread::set_name(&name);
    let Ok(line) = CString::new(title) else { return };
    // The kernel reads the text until the process ends.
    set_command_line(Box::leak(line.into_boxed_c_str()).to_bytes_with_nul());
}

/// The title of a worker that will be forked. It is prepared before the fork, so that the worker writes to no
/// page for it.
pub(crate) struct Title {
    /// The part that fits in a process's name, stored here so that the worker reads no other page.
    short: CString,
    /// The command line, which ends with zeros.
    text: [u8; 128],
    /// The position of the number.
    at: usize,
}

impl Title {
    /// At most 80 bytes of `prefix` are shown.
    pub(crate) fn new(prefix: &str) -> Self {
        let prefix = &prefix[..prefix.floor_char_boundary(80)];
        let short = CString::new(&prefix[..prefix.floor_char_boundary(15)]).unwrap_or_default();
        let mut text = [0; 128];
        text[..prefix.len()].copy_from_slice(prefix.as_bytes());
        Self { short, text, at: prefix.len() }
    }

    /// Appends the number in brackets to the name.
    pub(crate) fn set_number(&mut self, number: u64) {
        let mut rest = &mut self.text[self.at..];
        // There is room for the longest number.
        let _ = write!(rest, "({number})\0");
    }

    /// Shows the title, as long as this value is not moved or dropped.
    #[taskfork_macros::startup_code]
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

/// Makes the kernel show `line` as the command line. The program's own arguments do not change. The kernel
/// reads the memory each time that a process asks for the command line.
fn set_command_line(line: &[u8]) -> Option<()> {
    // A worker's memory has the layout of its server's. To read the layout takes longer than a fork, so it is
    // kept.
    static LAYOUT: OnceLock<Option<Layout>> = OnceLock::new();
    let layout = LAYOUT.get_or_init(Layout::read).as_ref()?;
    let (start, length) = (line.as_ptr().addr() as u64, line.len() as u64);
    let map = MemoryMap {
        start_code: layout.code.0,
        end_code: layout.code.1,
        start_data: layout.data.0,
        end_data: layout.data.1,
        start_brk: layout.start_brk,
        // SAFETY: `sbrk(0)` only returns the current end.
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
    // SAFETY: the kernel copies the structure and checks every address in it. All values except the two of the
    // arguments are those that it has already.
    unsafe {
        libc::syscall(libc::SYS_prctl, what, which, &raw const map, size_of_val(&map), 0_usize)
    };
    Some(())
}

/// Reads the addresses of the parts of this process. The kernel sets all of them at once, so all but the
/// arguments must be set to their present values.
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
        // The process's name is in brackets and can itself have brackets and blanks. The third field follows
        // the last bracket.
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
