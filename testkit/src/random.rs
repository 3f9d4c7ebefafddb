//! Randomness that is the same each time.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// A deterministic source of numbers (SplitMix64), of no cryptographic worth. Clones draw from the same sequence.
#[derive(Clone, Debug)]
pub struct SeededRandom {
    state: Arc<AtomicU64>,
}

impl SeededRandom {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Self { state: Arc::new(AtomicU64::new(seed)) }
    }

    /// The next number, uniform over all values.
    pub fn u64(&self) -> u64 {
        // SplitMix64: the state walks by the golden ratio, the output is mixed from it.
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut mixed = self.state.fetch_add(STEP, Ordering::SeqCst).wrapping_add(STEP);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which must not be 0; uniform for the bounds that tests use.
    pub fn below(&self, bound: u64) -> u64 {
        let wide = u128::from(self.u64()) * u128::from(bound);
        u64::try_from(wide >> 64).expect("a 64-bit number times a bound, shifted, is below the bound")
    }

    /// Fills the bytes.
    pub fn fill(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.u64().to_le_bytes()[..chunk.len()]);
        }
    }

    /// The source as a closure that fills bytes.
    pub fn as_fn(&self) -> impl Fn(&mut [u8]) + Send + Sync + Clone + 'static {
        let random = self.clone();
        move |bytes: &mut [u8]| random.fill(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_that_of_splitmix64() {
        // First outputs for seed 0, from the published reference implementation.
        let random = SeededRandom::new(0);
        assert_eq!(random.u64(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(random.u64(), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn a_seed_repeats_and_clones_share() {
        let (a, b) = (SeededRandom::new(7), SeededRandom::new(7));
        let mut bytes = ([0; 13], [0; 13]);
        a.fill(&mut bytes.0);
        b.as_fn()(&mut bytes.1);
        assert_eq!(bytes.0, bytes.1);
        assert_ne!(a.clone().u64(), a.u64());
        assert!((0..1000).all(|_| a.below(3) < 3));
    }
}
