//! Two ECDSA signatures for one: with (r, s) also (r, n - s) verifies, and anybody can make it. What is named by a hash over a
//! signature has two names therefore.

use crate::crypto::Curve;

/// n - s without zeros in front; nothing when `s` is not below n.
pub(crate) fn negated(curve: Curve, s: &[u8]) -> Option<Vec<u8>> {
    let order: &[u8] = match curve {
        Curve::P256 => &ORDER_P256,
        Curve::P384 => &ORDER_P384,
    };
    let mut difference = difference(order, s)?;
    let first = difference.iter().position(|byte| *byte != 0)?;
    Some(difference.split_off(first))
}

/// `left - right` of positive numbers, as wide as `left`; nothing when that is negative.
fn difference(left: &[u8], right: &[u8]) -> Option<Vec<u8>> {
    let mut out = left.to_vec();
    let start = left.len().checked_sub(right.len())?;
    let mut borrow = false;
    for (at, byte) in out.iter_mut().enumerate().rev() {
        let less = at.checked_sub(start).map_or(0, |at| right[at]);
        let (partial, first) = byte.overflowing_sub(less);
        let (whole, second) = partial.overflowing_sub(u8::from(borrow));
        (*byte, borrow) = (whole, first || second);
    }
    (!borrow).then_some(out)
}

/// The orders of the curves' groups (SEC 2, sections 2.4.2 and 2.5.1).
const ORDER_P256: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc,
    0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];
const ORDER_P384: [u8; 48] = [
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xc7, 0x63, 0x4d, 0x81, 0xf4, 0x37, 0x2d, 0xdf, 0x58, 0x1a,
    0x0d, 0xb2, 0x48, 0xb0, 0xa7, 0x7a, 0xec, 0xec, 0x19, 0x6a, 0xcc, 0xc5, 0x29, 0x73,
];
