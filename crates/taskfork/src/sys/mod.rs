//! Every `unsafe` of the crate but the calls of the few functions here that are unsafe to call. Nothing here knows
//! what a worker or a client is.
#![allow(unsafe_code)]

#[cfg(feature = "server")]
mod accounts;
#[cfg(feature = "server")]
mod alarm;
mod cores;
#[cfg(feature = "server")]
mod coverage;
#[cfg(feature = "server")]
mod descriptor;
#[cfg(feature = "server")]
mod exit_mirror;
mod files;
mod fork_count;
#[cfg(feature = "server")]
mod forked;
#[cfg(feature = "server")]
mod kernel_file;
mod mapping;
#[cfg(feature = "server")]
mod memory;
mod memory_file;
#[cfg(feature = "server")]
mod open_file_limit;
#[cfg(feature = "server")]
mod pages;
#[cfg(feature = "server")]
mod partial_fork;
mod peer;
#[cfg(feature = "server")]
mod process;
mod reactor;
#[cfg(feature = "server")]
mod restartable;
mod sealed_memory;
mod shared_atomics;
mod shared_buffer;
#[cfg(feature = "server")]
mod signal;
#[cfg(test)]
mod test_support;
#[cfg(feature = "server")]
mod title;
mod user;
mod vec_pages;
#[cfg(feature = "server")]
mod violation;

#[cfg(feature = "server")]
pub(crate) use accounts::{account_of, group_id_of, groups_of_this_process, user_id_of};
#[cfg(feature = "server")]
pub(crate) use alarm::{
    MAX_STACK_FRAMES, StackSink, disable_stack_capture, install_stack_handlers,
    set_next_alarm_handler, wake_server,
};
pub(crate) use cores::available_cores;
#[cfg(feature = "server")]
pub(crate) use descriptor::{
    MAX_CHANNEL_TEXT, Received, close_all_except, close_unchecked, leak_descriptor,
    move_out_unchecked, receive_descriptor, send_descriptor, take_inherited,
};
#[cfg(feature = "server")]
pub(crate) use exit_mirror::{
    defer_mirroring, exit_if_child_exited, mirror_exit_of, mirrored_child, stop_mirroring,
};
pub(crate) use files::{
    MAX_FILES, MAX_UNCLAIMED_FILES, SHORT_READ, TOO_MANY_FILES, reads_into_inbox, receive_files,
    receive_into, send_files, supports_descriptors,
};
#[cfg(not(test))]
pub(crate) use fork_count::fork_count;
#[cfg(feature = "server")]
pub(crate) use forked::{
    exit_forked_child, exit_if_forked, is_forked, map_worker_mark, remember_worker_process,
};
#[cfg(feature = "server")]
pub(crate) use kernel_file::KernelFile;
#[cfg(feature = "server")]
pub(crate) use memory::{Collapsed, MappedFile, OccupiedMemory, collapse_huge_pages};
#[cfg(feature = "server")]
pub(crate) use memory_file::memory_with;
#[cfg(feature = "server")]
pub(crate) use open_file_limit::OpenFileLimit;
#[cfg(feature = "server")]
pub(crate) use pages::{
    AtomicWords, Pages, PublishedPage, map_inherited_page, map_inherited_published,
};
#[cfg(feature = "server")]
pub(crate) use partial_fork::PartialFork;
#[cfg(feature = "tls")]
pub(crate) use peer::output_queue;
pub(crate) use peer::{Credentials, has_unread, peer_address, peer_credentials, peer_groups};
#[cfg(feature = "server")]
pub(crate) use process::{
    ForkError, Forked, ThreadCount, exit_flushed, exit_now, exited_child, flush_stdio, fork,
    remove_variables, reseed_c_random, set_variable, spawn_with_own_arguments, take_variable,
    thread_count,
};
pub(crate) use reactor::register_with_reactor;
pub(crate) use sealed_memory::{Sealed, SealedError, Writable};
pub(crate) use shared_atomics::SharedAtomics;
pub(crate) use shared_buffer::{
    LocalBuffer, LocalBufferMut, MemoryId, RemoteBuffer, copy_to_uninit,
};
#[cfg(feature = "server")]
pub(crate) use signal::{
    Disposition, before_exec, block_signals, is_ignored, reset_for_worker, set_blocked_signals,
    set_default_signals, signals_to_reset, spawn_without_signals, with_mask,
};
#[cfg(feature = "server")]
pub(crate) use title::{Title, set_title};
pub(crate) use user::{
    User, common_user, effective_user, is_unique_group, is_unique_user, record_user_map, sole_user,
};
pub(crate) use vec_pages::VecPages;
#[cfg(feature = "server")]
pub(crate) use violation::{record_violation, set_violation_word};
