pub(crate) fn trials() -> Vec<libtest_mimic::Trial> { Vec::new() }
pub(crate) fn server(_: taskfork::ServerBuilder) -> Result<(), taskfork::ServerError> { Ok(()) }
