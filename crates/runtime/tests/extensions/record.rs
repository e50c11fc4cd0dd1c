//! A stream that writes down what passes.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};

use migration_ipc::PeerIdentity;
use migration_ipc::transport::memory::MemoryStream;
use migration_ipc::transport::{BoxFuture, IdentifyError, IdentifyWhen, Stream};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::common::{acknowledgment, envelope, frame};
use crate::transcript::Transcript;

/// What passed over a connection. Clones are the same record.
#[derive(Debug, Clone, Default)]
pub(crate) struct Record(Arc<Mutex<Bytes>>);

#[derive(Debug, Default)]
struct Bytes {
    from_client: Vec<u8>,
    from_service: Vec<u8>,
}

impl Record {
    /// What passed so far, as frames.
    pub(crate) fn transcript(&self) -> Transcript {
        let bytes = self.0.lock().unwrap();
        Transcript::read(&bytes.from_client, &bytes.from_service)
    }
}

/// What becomes of the client's first frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FirstFrame {
    Passes,
    /// The service never sees it: so a service looks that ignores hellos.
    IsIgnored,
    /// Nor here, and the client is told that nobody knows its type: so deployed services do.
    IsRefused,
}

/// The client's end of a connection.
#[derive(Debug)]
pub(crate) struct Recorded {
    stream: MemoryStream,
    record: Record,
    first_frame: FirstFrame,
    /// What the client reads before anything else.
    refusal: Option<Vec<u8>>,
    reader: Option<Waker>,
}

impl Recorded {
    pub(crate) fn new(stream: MemoryStream, record: Record, first_frame: FirstFrame) -> Self {
        Self {
            stream,
            record,
            first_frame,
            refusal: None,
            reader: None,
        }
    }

    /// The length of the frame, if the service does not see it.
    fn withhold(&mut self, bytes: &[u8]) -> Option<usize> {
        let first_frame = std::mem::replace(&mut self.first_frame, FirstFrame::Passes);
        if first_frame == FirstFrame::Passes {
            return None;
        }
        let prefix = bytes
            .first_chunk()
            .expect("a prefix and its body are one write");
        let length = 4 + usize::try_from(i32::from_le_bytes(*prefix)).unwrap();
        if first_frame == FirstFrame::IsRefused {
            let hello: Value = serde_json::from_slice(&bytes[4..length]).unwrap();
            let mut refusal = acknowledgment(&hello);
            refusal["success"] = false.into();
            refusal["error"] = "unknown message type".into();
            let refusal = envelope("refusal", "ACKNOWLEDGMENT", refusal);
            self.refusal = Some(frame(&refusal.to_string()));
            if let Some(reader) = self.reader.take() {
                reader.wake();
            }
        }
        Some(length)
    }
}

impl Stream for Recorded {
    fn identify_when(&self) -> IdentifyWhen {
        self.stream.identify_when()
    }

    fn identify(&self) -> BoxFuture<'static, Result<PeerIdentity, IdentifyError>> {
        self.stream.identify()
    }
}

impl AsyncRead for Recorded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        match self.refusal.take() {
            Some(refusal) => buffer.put_slice(&refusal),
            None => {
                self.reader = Some(cx.waker().clone());
                ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
            }
        }
        let read = &buffer.filled()[before..];
        self.record.0.lock().unwrap().from_service.extend(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Recorded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = match self.withhold(bytes) {
            None => ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?,
            Some(length) => length,
        };
        self.record
            .0
            .lock()
            .unwrap()
            .from_client
            .extend(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
