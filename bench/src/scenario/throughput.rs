//! WAL from backend to frontend as fast as it goes, status updates the other way.

use std::time::Duration;

use super::{Account, Ground, Outcome, Scenario};
use crate::cipher;
use crate::cli::Peer;
use crate::contender::Contender;
use crate::measure::Measure;
use crate::problem::{Doing, Problem};
use crate::wire::frontend::Frontend;

const GIB: f64 = (1_u64 << 30) as f64;
/// Streamed before the clock starts, hashed at both ends.
const WARM_UP: u64 = 64 << 20;

#[derive(Debug)]
pub(super) struct Throughput {
    bytes: u64,
    limit: Duration,
}

impl Throughput {
    pub(super) fn new(gib: f64, seconds: f64) -> Self {
        Self {
            bytes: (gib.clamp(0.0, 1e6) * GIB) as u64,
            limit: Duration::from_secs_f64(seconds.clamp(0.1, 3600.0)),
        }
    }
}

impl Scenario for Throughput {
    fn name(&self) -> &'static str {
        "throughput"
    }

    fn method(&self) -> String {
        format!(
            "One session. XLogData of up to 131,102 bytes in bursts of 16, then one of the size of single commits; a \
             status update of 39 bytes after each burst. {:.1} GiB per cell, {} s at most. Before the clock starts, \
             64 MiB are compared by SHA-256 at both ends; after that every byte that arrives is compared with what \
             it must be at its place. CPU is that of both proxies' processes, by the kernel's clock of each. For plain, the \
             CPU of sealing and opening as much by AES-256-GCM alone is measured too: with it, plain is the least that TLS \
             can cost here.",
            self.bytes as f64 / GIB,
            self.limit.as_secs_f64()
        )
    }

    fn measure(&mut self, ground: &Ground, contender: Contender) -> Result<Vec<Outcome>, Problem> {
        let running = contender.start(&ground.workshop, ground.backend.address())?;
        let stream = |bytes, hashed| {
            Frontend::connect(running.entry)
                .and_then(|frontend| frontend.stream_wal(bytes, self.limit, hashed))
                .doing(|| format!("the stream through {} is not right", contender.name()))
        };
        let checked = stream(WARM_UP.min(self.bytes), true)?;
        debug_assert!(checked.hash.is_some());
        let account = Account::open(&running);
        let streamed = stream(self.bytes, false)?;
        let gib = streamed.bytes as f64 / GIB;
        let mut measures = account.close(
            gib,
            1.0,
            [
                Measure::CpuPerGib,
                Measure::CpuPerGibServer,
                Measure::CpuPerGibClient,
            ],
        );
        if contender == Contender::Peer(Peer::Plain) {
            let cipher = cipher::cpu_per_gib()?;
            let relay = measures.get(&Measure::CpuPerGib).copied();
            measures.insert(Measure::CipherPerGib, cipher);
            measures.insert(
                Measure::CpuPerGibAndCipher,
                relay.unwrap_or_default() + cipher,
            );
        }
        measures.insert(Measure::GibPerSecond, gib / streamed.time.as_secs_f64());
        Ok(vec![("WAL in bulk, one stream".to_owned(), measures)])
    }
}
