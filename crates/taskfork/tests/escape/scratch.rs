//! What a worker can leave in its scratch folder, which the server removes with other rights than the worker had.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, mkdirat, mknodat, openat};

use crate::attacks::{Attack, Expected, attack};
use crate::attempt::Surroundings;

/// A file outside that must stay as it is.
const PRECIOUS: &str = "precious/file";
const PRECIOUS_TEXT: &str = "precious";
const PRECIOUS_MODE: u32 = 0o640;

pub(super) fn attacks() -> Vec<Attack> {
    let attack = |name, run| attack(name, Expected::Answers, run);
    vec![
        attack("scratch::leaves_links_to_other_folders", |with| {
            symlink(with.outside.join("precious"), with.scratch.join("link"))?;
            symlink(&with.scratch, with.scratch.join("circle"))?;
            symlink("/", with.scratch.join("root"))?;
            symlink("../..", with.scratch.join("above"))
        }),
        attack("scratch::leaves_another_name_of_a_file", |with| {
            // A sandbox refuses this.
            let _ = fs::hard_link(with.outside.join(PRECIOUS), with.scratch.join("other"));
            Ok(())
        }),
        attack("scratch::leaves_a_deep_tree", |with| {
            let mut folder = File::open(&with.scratch)?;
            for _ in 0..1_000 {
                mkdirat(&folder, "folder", Mode::RWXU)?;
                folder = openat(&folder, "folder", OFlags::DIRECTORY, Mode::empty())?.into();
            }
            Ok(())
        }),
        attack("scratch::leaves_many_files", |with| {
            (0..3_000).try_for_each(|number| {
                File::create(with.scratch.join(number.to_string())).map(drop)
            })
        }),
        attack("scratch::leaves_folders_that_cannot_be_listed", |with| {
            let mut folder = with.scratch.clone();
            for _ in 0..3 {
                folder.push("hidden");
                DirBuilder::new().mode(0o300).create(&folder)?;
                File::create(folder.join("file"))?;
                symlink(with.outside.join("precious"), folder.join("link"))?;
            }
            DirBuilder::new().mode(0o0).create(with.scratch.join("closed"))
        }),
        attack("scratch::leaves_strange_names", |with| {
            let long = [b'x'; 255];
            let names: [&[u8]; 5] = [b"a\nb", b"\xff\xfe", b"-rf", b"*", &long];
            names
                .into_iter()
                .try_for_each(|name| fs::create_dir(with.scratch.join(OsStr::from_bytes(name))))
        }),
        attack("scratch::leaves_a_file_as_large_as_a_disk", |with| {
            let file = File::create(with.scratch.join("sparse"))?;
            // A limit may refuse this.
            let _ = file.set_len(1 << 40);
            Ok(())
        }),
        attack("scratch::leaves_files_that_block", |with| {
            // A sandbox refuses both.
            let pipe = with.scratch.join("pipe");
            let _ = mknodat(CWD, pipe, FileType::Fifo, Mode::RWXU, 0);
            let _ = std::os::unix::net::UnixListener::bind(with.scratch.join("socket"));
            Ok(())
        }),
        attack("scratch::puts_a_link_in_its_place", |with| {
            let moved = with.scratch.with_extension("moved");
            if fs::rename(&with.scratch, &moved).is_ok() {
                let _ = symlink(with.outside.join("precious"), &with.scratch);
            }
            Ok(())
        }),
        attack("scratch::removes_its_folder", |with| {
            let _ = fs::remove_dir(&with.scratch);
            Ok(())
        }),
        attack("scratch::closes_its_folder", |with| {
            File::create(with.scratch.join("file"))?;
            // A sandbox refuses this.
            let _ = fs::set_permissions(&with.scratch, PermissionsExt::from_mode(0o0));
            Ok(())
        }),
        attack("scratch::makes_files_until_its_end", |with| {
            for thread in 0..8 {
                let folder = with.scratch.join(thread.to_string());
                std::thread::Builder::new().spawn(move || {
                    for number in 0_u64.. {
                        let _ = fs::create_dir(&folder);
                        let _ = File::create(folder.join(number.to_string()));
                        let _ = fs::remove_file(folder.join(number.wrapping_sub(9).to_string()));
                    }
                })?;
            }
            Ok(())
        }),
    ]
}

/// Makes the file that must stay.
pub(crate) fn make_precious(outside: &Path) -> io::Result<()> {
    let file = outside.join(PRECIOUS);
    fs::create_dir(outside.join("precious"))?;
    fs::write(&file, PRECIOUS_TEXT)?;
    fs::set_permissions(&file, PermissionsExt::from_mode(PRECIOUS_MODE))
}

/// Whether that file is as it was.
pub(crate) fn is_precious_unchanged(with: &Surroundings) -> Result<(), String> {
    let file = with.outside.join(PRECIOUS);
    let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    let mode = fs::metadata(&file).map_or(0, |metadata| metadata.mode() & 0o7777);
    match (&*text, mode) {
        (PRECIOUS_TEXT, PRECIOUS_MODE) => Ok(()),
        _ => Err(format!("a file outside has mode {mode:o} and the text `{text}`")),
    }
}
