//! How long messages may be, and which way long values take.

use super::ClientBuilder;

impl ClientBuilder {
    /// Sets the length of the longest message in either direction, in bytes.
    ///
    /// Defaults to 64 MiB. Less than 256 is an error of [`build`](Self::build). Longer arguments
    /// fail the call with [`CallError::Arguments`](crate::error::CallError::Arguments), and a
    /// longer result with [`CallError::Result`](crate::error::CallError::Result).
    ///
    /// This also bounds how long the decoding of one result can keep its task busy, because a result
    /// has at most one element for 8 bytes of it. With the default and a release build, 8 million
    /// elements took 0.1 s as a list of numbers. A list of strings or a
    /// [`Value`](crate::client::Value) took 0.7 s to 1.2 s, and a `HashMap<String, _>` took 5 s. The
    /// call's time limit does not cover the decoding. If a worker is not trusted, or if other tasks of
    /// the same thread must not wait that long, set less: the time shrinks in proportion.
    ///
    /// ```
    /// # fn build() -> Result<taskfork::Client, taskfork::client::ConfigError> {
    /// let client = taskfork::Client::builder().address("unix:/run/adder.sock").max_frame(1 << 20);
    /// # client.build()
    /// # }
    /// ```
    pub fn max_frame(mut self, bytes: usize) -> Self {
        self.max_frame = bytes;
        self
    }

    /// Sets the length of the longest [`Blob`](crate::Blob) in a result that the worker passes as
    /// memory, in bytes.
    ///
    /// Defaults to 256 MiB. If a result has a longer one that does not fit in a message either (see
    /// [`max_frame`](Self::max_frame)), its call fails with
    /// [`CallError::Result`](crate::error::CallError::Result).
    ///
    /// Mapping a blob takes address space only. But each page that is read becomes memory of the
    /// reader, even if the worker has never written to it. So this bounds the memory that one blob
    /// of a worker can take here. The default is four times that of `max_frame`, because no buffer
    /// has to hold a blob.
    ///
    /// ```
    /// # fn build() -> Result<taskfork::Client, taskfork::client::ConfigError> {
    /// let films = taskfork::Client::builder().address("unix:/run/films").max_blob(2 << 30);
    /// # films.build()
    /// # }
    /// ```
    pub fn max_blob(mut self, bytes: usize) -> Self {
        self.max_blob = bytes;
        self
    }

    /// Allows passing open files, and the memory of [`Blob`](crate::Blob)s, as descriptors. They
    /// pass only through unix sockets; elsewhere the bytes of a blob are sent.
    ///
    /// Defaults to true. Set it to false if the client takes results as
    /// [`Value`](crate::client::Value)s: a `Value` cannot hold an open file.
    ///
    /// ```
    /// let builder = taskfork::Client::builder().pass_descriptors(false);
    /// # let _ = builder;
    /// ```
    pub fn pass_descriptors(mut self, may: bool) -> Self {
        self.pass_descriptors = may;
        self
    }

    /// Sets how much memory each side of a connection shares with the other for long
    /// [`Blob`](crate::Blob)s, in bytes. Memory is shared only through unix sockets, and only
    /// between processes of one user.
    ///
    /// Defaults to 64 MiB. The lower of this and the server's limit applies. Blobs that do not fit
    /// are sent. 0 shares nothing.
    ///
    /// The memory grows with use. A worker that has not used it for 5 seconds has all of it freed,
    /// except what blobs still hold.
    ///
    /// A worker that is taken over by its input can change such a blob while the client reads it. If you do
    /// not trust the workers' code, set [`copy_shared_memory`](Self::copy_shared_memory).
    ///
    /// The same option controls the memory for short messages: 33 KiB for each connection, from its
    /// 33rd call on. 0 turns that off as well.
    ///
    /// ```
    /// # fn build() -> Result<taskfork::Client, taskfork::client::ConfigError> {
    /// let images = taskfork::Client::builder().address("unix:/run/images").shared_memory(256 << 20);
    /// # images.build()
    /// # }
    /// ```
    pub fn shared_memory(mut self, bytes: usize) -> Self {
        self.shared_memory = bytes;
        self
    }

    /// Sets whether the client copies the bytes of a result that arrives in shared memory, before it
    /// hands them out as a [`Blob`](crate::Blob) or another type.
    ///
    /// Defaults to false: a `Blob` then refers to memory that a worker of the same user could still
    /// write to. A worker of taskfork does not, but one that runs an attacker's code can. Code that
    /// relies on the `&[u8]` of a blob to stay the same has undefined behaviour in that case. With
    /// true, no result changes after it has arrived. Sealed memory, which a
    /// [`BlobMut`](crate::blob::BlobMut) becomes, cannot change and is not copied in either case.
    ///
    /// The copy takes about as long as to read the bytes twice. A copy is not passed back in place.
    ///
    /// ```
    /// # fn build() -> Result<taskfork::Client, taskfork::client::ConfigError> {
    /// let decoders = taskfork::Client::builder().address("unix:/run/decoders").copy_shared_memory(true);
    /// # decoders.build()
    /// # }
    /// ```
    pub fn copy_shared_memory(mut self, copy: bool) -> Self {
        self.copy_shared_memory = copy;
        self
    }
}
