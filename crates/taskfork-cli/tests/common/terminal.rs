//! A pseudo-terminal, and what programs write to it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// Both sides of a pseudo-terminal with 30 rows. A thread reads what programs write.
pub struct Terminal {
    controller: File,
    /// The side of the programs.
    pub terminal: File,
    received: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    pub fn open(columns: u16) -> Self {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let name = ptsname(&controller, Vec::new()).unwrap().into_string().unwrap();
        let terminal = File::options().read(true).write(true).open(name).unwrap();
        let size = Winsize { ws_row: 30, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&terminal, size).unwrap();
        let controller = File::from(controller);
        let received = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, bytes) = (controller.try_clone().unwrap(), Arc::clone(&received));
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length) = reader.read(&mut piece) {
                bytes.lock().unwrap().extend_from_slice(&piece[..length]);
            }
        });
        Self { controller, terminal, received }
    }

    /// Starts a program with this terminal as its input, output and standard error.
    pub fn spawn(&self, command: &mut Command) -> Child {
        let side = || OwnedFd::from(self.terminal.try_clone().unwrap());
        command.stdin(side()).stdout(side()).stderr(side()).spawn().unwrap()
    }

    /// Types `keys`.
    pub fn write(&self, keys: &[u8]) {
        (&self.controller).write_all(keys).unwrap();
    }

    /// What programs have written since the last [`clear`](Self::clear).
    pub fn received(&self) -> Vec<u8> {
        self.received.lock().unwrap().clone()
    }

    pub fn has_received(&self, text: &str) -> bool {
        String::from_utf8_lossy(&self.received()).contains(text)
    }

    pub fn clear(&self) {
        self.received.lock().unwrap().clear();
    }
}
