//! Every `unsafe` of the crate but the calls of the few functions here that are unsafe to call. Nothing here knows
//! what a worker or a client is.
#![allow(unsafe_code)]

#[cfg(feature = "server")]
mod alarm;
#[cfg(coverage)]
mod coverage;
mod descriptor;
mod exit_mirror;
mod files;
mod fork_count;
mod forked;
mod kernel_file;
mod mapping;
mod memory;
mod memory_file;
mod open_file_limit;
mod pages;
mod partial_fork;
mod peer;
mod process;
mod restartable;
mod sealed_memory;
mod shared_atomics;
mod shared_buffer;
mod signal;
#[cfg(test)]
mod test_support;
mod title;
mod user;
mod vec_pages;
mod violation;

#[cfg(feature = "server")]
pub(crate) use alarm::{
    MAX_STACK_FRAMES, StackSink, disable_stack_capture, install_stack_handler, wake_server,
};
pub(crate) use descriptor::{
    MAX_CHANNEL_TEXT, Received, close_all_except, close_unchecked, leak_descriptor,
    move_out_unchecked, receive_descriptor, register_with_reactor, send_descriptor, take_inherited,
};
pub(crate) use exit_mirror::{
    defer_mirroring, exit_if_child_exited, mirror_exit_of, mirrored_child, stop_mirroring,
};
pub(crate) use files::{
    MAX_FILES, MAX_UNCLAIMED_FILES, SHORT_READ, TOO_MANY_FILES, reads_into_inbox, receive_files,
    receive_into, send_files, supports_descriptors,
};
#[cfg(not(test))]
pub(crate) use fork_count::fork_count;
pub(crate) use forked::{
    exit_forked_child, exit_if_forked, is_forked, map_worker_mark, remember_worker_process,
};
pub(crate) use kernel_file::KernelFile;
pub(crate) use memory::{Collapsed, MappedFile, OccupiedMemory, collapse_huge_pages};
pub(crate) use open_file_limit::OpenFileLimit;
pub(crate) use pages::{AtomicWords, Pages, PublishedPage};
pub(crate) use partial_fork::PartialFork;
#[cfg(feature = "tls")]
pub(crate) use peer::output_queue;
pub(crate) use peer::{
    Credentials, group_id_of, has_unread, peer_address, peer_credentials, peer_groups, user_id_of,
};
pub(crate) use process::{
    ForkError, Forked, ThreadCount, available_cores, exit_flushed, exit_now, exited_child,
    flush_stdio, fork, remove_variables, reseed_c_random, set_variable, spawn_with_own_arguments,
    take_variable, thread_count,
};
pub(crate) use sealed_memory::{Sealed, SealedError, Writable};
pub(crate) use shared_atomics::SharedAtomics;
pub(crate) use shared_buffer::{LocalBuffer, LocalBufferMut, MemoryId, RemoteBuffer};
pub(crate) use signal::{
    Disposition, before_exec, block_signals, is_ignored, reset_for_worker, set_blocked_signals,
    set_default_signals, signals_to_reset, spawn_without_signals, with_mask,
};
pub(crate) use title::{Title, set_title};
pub(crate) use user::{
    User, account_of, common_user, effective_user, groups_of_this_process, is_unique_group,
    is_unique_user, record_user_map, sole_user,
};
pub(crate) use vec_pages::VecPages;
pub(crate) use violation::{record_violation, set_violation_word};
