//! Attested nodes: what the server remembers of an agent, and which of its certificates is the living one.

use crate::{SelectorSet, SpiffeId, Timestamp, text::textual};
use std::fmt;

/// Why a serial number is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SerialError {
    /// Nothing was given.
    #[error("serial number is empty")]
    Empty,
    /// Something other than decimal digits.
    #[error("serial number must be decimal digits")]
    NotDecimal,
    /// More than 20 bytes (RFC 5280 section 4.1.2.2).
    #[error("serial number is longer than 20 bytes")]
    TooLong,
}

/// An X.509 serial number: up to 20 bytes, unsigned; printed and parsed as decimal text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SerialNumber([u8; 20]);

impl SerialNumber {
    /// The number of these big-endian bytes; leading zeros do not count.
    ///
    /// # Errors
    /// When there are none, or more than 20 that count.
    pub fn from_be_bytes(bytes: &[u8]) -> Result<Self, SerialError> {
        if bytes.is_empty() {
            return Err(SerialError::Empty);
        }
        let significant = &bytes[bytes.iter().take_while(|b| **b == 0).count()..];
        let mut number = [0; 20];
        let start = number.len().checked_sub(significant.len()).ok_or(SerialError::TooLong)?;
        number[start..].copy_from_slice(significant);
        Ok(Self(number))
    }

    /// The big-endian bytes without leading zeros; one zero byte for zero.
    pub fn as_be_bytes(&self) -> &[u8] {
        let zeros = self.0.iter().take_while(|b| **b == 0).count();
        &self.0[zeros.min(self.0.len() - 1)..]
    }

    /// Parses decimal digits.
    ///
    /// # Errors
    /// When there are none, something else, or a number of more than 20 bytes.
    pub fn parse(text: &str) -> Result<Self, SerialError> {
        if text.is_empty() {
            return Err(SerialError::Empty);
        }
        let mut number = [0u8; 20];
        for digit in text.bytes() {
            if !digit.is_ascii_digit() {
                return Err(SerialError::NotDecimal);
            }
            let mut carry = u32::from(digit - b'0');
            for byte in number.iter_mut().rev() {
                let value = u32::from(*byte) * 10 + carry;
                *byte = value as u8; // the low byte is meant
                carry = value >> 8;
            }
            if carry != 0 {
                return Err(SerialError::TooLong);
            }
        }
        Ok(Self(number))
    }
}

impl From<u128> for SerialNumber {
    fn from(number: u128) -> Self {
        number.to_be_bytes().into()
    }
}

impl From<[u8; 16]> for SerialNumber {
    fn from(bytes: [u8; 16]) -> Self {
        let mut number = [0; 20];
        number[4..].copy_from_slice(&bytes);
        Self(number)
    }
}

impl fmt::Display for SerialNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        let mut digits = [b'0'; 49]; // 2^160 has 49 digits
        let mut first = digits.len() - 1;
        for (at, digit) in digits.iter_mut().enumerate().rev() {
            let mut remainder = 0u32;
            for byte in &mut rest {
                let value = remainder << 8 | u32::from(*byte);
                *byte = (value / 10) as u8; // below 256, since the remainder is below 10
                remainder = value % 10;
            }
            *digit = b'0' + remainder as u8; // a single digit
            if remainder != 0 {
                first = at;
            }
        }
        let text: String = digits[first..].iter().map(|digit| char::from(*digit)).collect();
        f.pad(&text)
    }
}

impl fmt::Debug for SerialNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SerialNumber({self})")
    }
}

textual!(SerialNumber, SerialError);

/// What a presented agent certificate is to its node record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SerialCheck {
    /// The living certificate.
    Current,
    /// The one handed out by the last renewal, used for the first time: promote it.
    New,
    /// Neither: superseded, or never ours.
    Inactive,
    /// The node is banned; no certificate is good.
    Banned,
}

/// An agent that attested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttestedNode {
    /// The agent's SPIFFE ID.
    pub id: SpiffeId,
    /// The attestor that vouched for it.
    pub attestation_type: String,
    /// Serial of the living certificate; `None` when the node is banned.
    pub serial: Option<SerialNumber>,
    /// When the living certificate ends.
    pub not_after: Timestamp,
    /// Serial of a renewed certificate that has not been used yet.
    pub new_serial: Option<SerialNumber>,
    /// When the renewed certificate ends; without meaning while `new_serial` is `None`.
    pub new_not_after: Timestamp,
    /// What the attestor found out about the node.
    pub selectors: SelectorSet,
    /// True when the node may attest again, so that it needs no renewal.
    pub can_reattest: bool,
    /// The agent's version as it last told it.
    pub agent_version: String,
    /// Until when the selectors of [`EVIDENCE`] hold; `None` while there are none.
    pub evidence_until: Option<Timestamp>,
}

/// The type of the selectors that a node has from evidence of its devices, beside those of its attestor.
pub const EVIDENCE: &str = "gpu_node";

impl AttestedNode {
    /// True when the node may not connect and not attest until the record is deleted.
    pub fn banned(&self) -> bool {
        self.serial.is_none()
    }

    /// Says what the certificate with this serial is to the node.
    pub fn check_serial(&self, presented: &SerialNumber) -> SerialCheck {
        match (&self.serial, &self.new_serial) {
            (None, _) => SerialCheck::Banned,
            (Some(current), _) if current == presented => SerialCheck::Current,
            (_, Some(new)) if new == presented => SerialCheck::New,
            _ => SerialCheck::Inactive,
        }
    }

    /// Makes the renewed certificate the living one, which ends the former. Nothing happens without a renewed one, or
    /// when the node is banned.
    pub fn promote(&mut self) {
        if self.banned() {
            return;
        }
        if let Some(new) = self.new_serial.take() {
            self.serial = Some(new);
            self.not_after = self.new_not_after;
            self.new_not_after = Timestamp::from_unix_seconds(0);
        }
    }

    /// Records a renewed certificate; the living one stays good until the new one is used. Nothing happens when the
    /// node is banned.
    pub fn renew(&mut self, serial: SerialNumber, not_after: Timestamp) {
        if !self.banned() {
            self.new_serial = Some(serial);
            self.new_not_after = not_after;
        }
    }

    /// Replaces what is known from evidence of the node's devices, and leaves the attestor's selectors alone. Without
    /// selectors nothing is known any more.
    pub fn set_evidence(&mut self, selectors: SelectorSet, until: Timestamp) {
        let others = self.selectors.iter().filter(|selector| selector.kind() != EVIDENCE).cloned();
        let others: SelectorSet = others.collect();
        self.evidence_until = (!selectors.is_empty()).then_some(until);
        self.selectors = others.union(&selectors);
    }

    /// Takes over what evidence said of the same node before it attested again, until its end: between attesting and showing evidence anew the
    /// node must not lose what depends on it. Not longer than until `latest`: the one who attests now may have another key than the one whose
    /// evidence it was.
    pub fn keep_evidence(&mut self, before: &Self, latest: Timestamp) {
        if let Some(until) = before.evidence_until.map(|until| until.min(latest)) {
            let ours = before.selectors.iter().filter(|selector| selector.kind() == EVIDENCE);
            self.set_evidence(ours.cloned().collect(), until);
        }
    }

    /// Bans the node: no certificate of its is good any more.
    pub fn ban(&mut self) {
        self.serial = None;
        self.new_serial = None;
    }
}

/// A one-time secret with which a node attests.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The secret itself.
    pub value: String,
    /// From when on it is refused.
    pub expires_at: Timestamp,
    /// The additional identity that the node gets, if any.
    pub agent_id: Option<SpiffeId>,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("expires_at", &self.expires_at)
            .field("agent_id", &self.agent_id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serial(number: u128) -> SerialNumber {
        number.into()
    }

    #[test]
    fn serials_are_decimal_text() {
        for text in [
            "0",
            "1",
            "255",
            "256",
            "340282366920938463463374607431768211455",
            "1461501637330902918203684832716283019655932542975",
        ] {
            assert_eq!(SerialNumber::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(serial(u128::MAX).to_string(), u128::MAX.to_string());
        assert_eq!(SerialNumber::parse("007").unwrap(), serial(7));
        assert_eq!(SerialNumber::parse(""), Err(SerialError::Empty));
        assert_eq!(SerialNumber::parse("-1"), Err(SerialError::NotDecimal));
        assert_eq!(SerialNumber::parse("0x1"), Err(SerialError::NotDecimal));
        let over = "1461501637330902918203684832716283019655932542976";
        assert_eq!(SerialNumber::parse(over), Err(SerialError::TooLong));
    }

    #[test]
    fn evidence_is_replaced_and_ends_without_touching_the_rest() {
        let set = |texts: &[&str]| texts.iter().map(|text| crate::Selector::parse(text).unwrap()).collect();
        let (mut node, until) = (node(), Timestamp::from_unix_seconds(9));
        node.selectors = set(&["x509pop:a", "gpu_node:attested:true"]);
        node.set_evidence(set(&["gpu_node:arch:gh100"]), until);
        assert_eq!(node.selectors, set(&["gpu_node:arch:gh100", "x509pop:a"]));
        assert_eq!(node.evidence_until, Some(until));
        let mut again = self::node();
        again.selectors = set(&["x509pop:b"]);
        again.keep_evidence(&node, until);
        assert_eq!(again.selectors, set(&["gpu_node:arch:gh100", "x509pop:b"]));
        assert_eq!(again.evidence_until, Some(until));
        let sooner = until.saturating_sub(std::time::Duration::from_secs(1));
        again.keep_evidence(&node, sooner);
        assert_eq!(again.evidence_until, Some(sooner));
        again.keep_evidence(&node, until);
        node.set_evidence(set(&[]), until);
        again.keep_evidence(&node, until);
        assert_eq!(again.evidence_until, Some(until), "nothing was known before");
        assert_eq!((node.selectors, node.evidence_until), (set(&["x509pop:a"]), None));
    }

    #[test]
    fn serials_are_bytes_without_leading_zeros() {
        assert_eq!(SerialNumber::from_be_bytes(&[0, 0, 1, 0]).unwrap().as_be_bytes(), [1, 0]);
        assert_eq!(SerialNumber::from_be_bytes(&[0]).unwrap().as_be_bytes(), [0]);
        assert_eq!(SerialNumber::from_be_bytes(&[0; 40]).unwrap(), serial(0));
        assert_eq!(SerialNumber::from_be_bytes(&[0xff; 20]).unwrap().as_be_bytes(), [0xff; 20]);
        assert_eq!(SerialNumber::from_be_bytes(&[1; 21]), Err(SerialError::TooLong));
        assert_eq!(SerialNumber::from_be_bytes(&[]), Err(SerialError::Empty));
    }

    fn node() -> AttestedNode {
        AttestedNode {
            id: SpiffeId::parse("spiffe://td/spire/agent/a").unwrap(),
            attestation_type: "join_token".into(),
            serial: Some(serial(1)),
            not_after: Timestamp::from_unix_seconds(100),
            new_serial: None,
            new_not_after: Timestamp::from_unix_seconds(0),
            selectors: SelectorSet::empty(),
            can_reattest: false,
            agent_version: String::new(),
            evidence_until: None,
        }
    }

    #[test]
    fn a_renewed_certificate_supersedes_the_old_one_when_first_used() {
        let mut node = node();
        node.renew(serial(2), Timestamp::from_unix_seconds(200));
        assert_eq!(node.check_serial(&serial(1)), SerialCheck::Current);
        assert_eq!(node.check_serial(&serial(2)), SerialCheck::New);
        assert_eq!(node.check_serial(&serial(3)), SerialCheck::Inactive);
        node.promote();
        assert_eq!(node.check_serial(&serial(2)), SerialCheck::Current);
        assert_eq!(node.check_serial(&serial(1)), SerialCheck::Inactive);
        assert_eq!((node.not_after, node.new_serial), (Timestamp::from_unix_seconds(200), None));
        let promoted = node.clone();
        node.promote();
        assert_eq!(node, promoted);
    }

    #[test]
    fn a_ban_outlives_renewals() {
        let mut node = node();
        node.renew(serial(2), Timestamp::from_unix_seconds(200));
        node.ban();
        node.renew(serial(3), Timestamp::from_unix_seconds(300));
        node.promote();
        assert!(node.banned());
        for presented in 1..=3 {
            assert_eq!(node.check_serial(&serial(presented)), SerialCheck::Banned);
        }
    }

    #[test]
    fn a_token_does_not_print_its_secret() {
        let token = JoinToken {
            value: "secret-value".into(),
            expires_at: Timestamp::from_unix_seconds(0),
            agent_id: None,
        };
        assert!(!format!("{token:?}").contains("secret-value"));
    }
}
