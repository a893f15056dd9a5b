//! The records as micro-benchmarks see them: one read's worth at a time, in either form.

use super::super::super::pool::{self, Borrowed, Buffer};
use super::super::{BEFORE, BEHIND, PAYLOAD};
use super::forger::{Forger, Inner};
use super::{Form, Ours, Pki, SUITES};

/// Our end of a connection with AES-256-GCM, and a peer that seals for it.
pub struct Measured {
    ours: Ours,
    forger: Forger,
}

/// A buffer as one read leaves it: records of the peer, or payload to be sealed.
pub struct Filled {
    buffer: Borrowed,
    filled: usize,
    records: usize,
    size: usize,
}

impl Measured {
    /// Shakes hands. In place, or by rustls.
    pub fn new(in_place: bool) -> Self {
        let form = if in_place {
            Form::InPlace
        } else {
            Form::Buffered
        };
        let (ours, forger) = Forger::meets(&Pki::new(SUITES[0], 0), form, true);
        Self { ours, forger }
    }

    /// As many `records` of `size` bytes as one read brings, to be opened once and in this order.
    pub fn received(&mut self, size: usize, records: usize) -> Filled {
        let inner = Inner {
            kind: 23,
            content: vec![1; size.min(PAYLOAD)],
            padding: 0,
        };
        let mut buffer = pool::borrow();
        let mut filled = self.ours.opener.reserve();
        let mut count = 0;
        while count < records {
            let sealed = self.forger.seal(&inner);
            buffer.bytes[filled..filled + sealed.len()].copy_from_slice(&sealed);
            filled += sealed.len();
            count += 1;
        }
        Filled {
            buffer,
            filled,
            records,
            size,
        }
    }

    /// Opens them; gives the bytes of payload.
    #[inline(never)]
    pub fn open(&mut self, received: &mut Filled) -> usize {
        let opened = self.ours.opener.open(&mut received.buffer, received.filled);
        assert!(opened.fault.is_none());
        let ranges = &received.buffer.ranges;
        ranges.iter().map(ExactSizeIterator::len).sum()
    }

    /// Room for `records` of `size` bytes of payload.
    pub fn to_send(size: usize, records: usize) -> Filled {
        Filled {
            buffer: pool::borrow(),
            filled: 0,
            records,
            size,
        }
    }

    /// Seals them, again and again in the same place; gives the bytes on the wire.
    #[inline(never)]
    pub fn seal(&mut self, sent: &mut Filled) -> usize {
        let Buffer { ranges, .. } = &mut *sent.buffer;
        ranges.clear();
        let stride = BEFORE + sent.size + BEHIND;
        ranges.extend((0..sent.records).map(|index| {
            let start = index * stride + BEFORE;
            start..start + sent.size
        }));
        self.ours
            .sealer
            .seal(&mut sent.buffer)
            .expect("a fresh key seals");
        let control = self.ours.sealer.control();
        let wire = control.len();
        control.clear();
        wire + sent
            .buffer
            .ranges
            .iter()
            .map(ExactSizeIterator::len)
            .sum::<usize>()
    }
}
