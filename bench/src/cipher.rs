//! What TLS' cipher costs by itself on this processor: with a relay that has no TLS, the least that a pair of proxies
//! can take here.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use nix::time::{ClockId, clock_gettime};

use crate::problem::{Doing, Problem};

const GIB: f64 = (1_u64 << 30) as f64;
/// The longest plaintext of a record (RFC 8446, section 5.1).
const RECORD: usize = 16_384;
/// As many records as fit a buffer of the relay, sealed again and again where they lie.
const RECORDS: usize = 16;
const TAG: usize = 16;
const ROUNDS: usize = 1024;

/// CPU seconds to seal and to open a GiB of the longest records, AES-256-GCM by aws-lc, in place. The thread's own
/// time counts, so that what else the machine does matters little.
pub(crate) fn cpu_per_gib() -> Result<f64, Problem> {
    let cannot = || "cannot measure AES-256-GCM".to_owned();
    let failed = |_| Problem::new(cannot());
    let key = UnboundKey::new(&AES_256_GCM, &[7; 32]).map_err(failed)?;
    let key = LessSafeKey::new(key);
    let mut buffer = vec![0_u8; RECORDS * (RECORD + TAG)];
    let clock = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).doing(cannot);
    let begun = clock()?;
    for round in 0..ROUNDS {
        for (place, record) in buffer.chunks_exact_mut(RECORD + TAG).enumerate() {
            let nonce = || nonce(round * RECORDS + place);
            let (payload, tag) = record.split_at_mut(RECORD);
            let sealed = key
                .seal_in_place_separate_tag(nonce(), Aad::empty(), payload)
                .map_err(failed)?;
            tag.copy_from_slice(sealed.as_ref());
            key.open_in_place(nonce(), Aad::empty(), record)
                .map_err(failed)?;
        }
    }
    let took = clock()? - begun;
    let took = took.tv_sec() as f64 + took.tv_nsec() as f64 / 1e9;
    Ok(took * GIB / (ROUNDS * RECORDS * RECORD) as f64)
}

fn nonce(counter: usize) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[4..].copy_from_slice(&(counter as u64).to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}
