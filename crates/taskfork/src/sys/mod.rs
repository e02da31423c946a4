//! Every `unsafe` of the crate but the calls of the few functions here that are unsafe to call. Nothing here knows
//! what a worker or a client is.
#![allow(unsafe_code)]

mod alarm;
mod descriptor;
mod files;
mod forked;
mod heir;
mod kernel_file;
mod lent;
mod memory;
mod memory_file;
mod open_files;
mod pages;
mod peer;
mod process;
mod shared;
mod signal;
mod title;
mod words;

pub(crate) use alarm::{STACK_WORDS, Witness, hide_stack, wake_server, watch_stack};
pub(crate) use descriptor::{
    LONGEST_WORD, Received, close_for_good, keep_only, keep_open, receive_descriptor_with,
    send_descriptor_with, take_for_good, take_inherited, watch,
};
pub(crate) use files::{
    MOST_FILES, MOST_UNCLAIMED, TOO_MANY_FILES, receive_files, send_files, takes_files,
};
pub(crate) use forked::{is_forked, leave, leave_if_forked, remember_process};
pub(crate) use heir::{follow, follow_if_dead, follow_no_more, followed, waits};
pub(crate) use kernel_file::KernelFile;
#[cfg(not(test))]
pub(crate) use lent::forks;
pub(crate) use lent::{Filling, Foreign, Identity, Own, User, common_user, only_user, user};
pub(crate) use memory::{Collapsed, MappedFile, collapse, resident_bytes};
pub(crate) use open_files::OpenFiles;
pub(crate) use pages::{Pages, Published, SharedWords};
pub(crate) use peer::{group_named, is_unread, peer, peer_address, peer_groups, user_named};
pub(crate) use process::{
    ForkError, Forked, ThreadCount, cores, ended_child, execute_again, exit_now, flush_stdio, fork,
    remove_variables, reseed_c_random, set_variable, take_variable, threads,
};
pub(crate) use shared::{Sealed, SealedError, Writable};
pub(crate) use signal::{
    Disposition, changed_signals, hold_back, is_ignored, reset_for_worker, set_default_signals,
    spawn_without_signals, with_mask,
};
pub(crate) use title::{Title, set_title};
pub(crate) use words::Words;
