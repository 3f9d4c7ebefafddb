//! Attested nodes and the tokens that admit them.

use bonafide_identity::{AttestedNode, JoinToken, SerialNumber, Timestamp};

use crate::convert::{
    ConvertError, instant, selectors_from_wire, selectors_to_wire, spiffe_id_from_wire, spiffe_id_to_wire,
};
use crate::spire::types::{self, AgentMask};

/// The node for the wire: its ID always, the rest as the mask says (absent mask: everything). A serial that waits
/// for its first use is not shown.
#[must_use]
pub fn agent_to_wire(node: &AttestedNode, mask: Option<&AgentMask>) -> types::Agent {
    let all = AgentMask {
        attestation_type: true,
        x509svid_serial_number: true,
        x509svid_expires_at: true,
        selectors: true,
        banned: true,
        can_reattest: true,
        agent_version: true,
    };
    let mask = mask.unwrap_or(&all);
    let mut wire = types::Agent { id: Some(spiffe_id_to_wire(&node.id)), ..types::Agent::default() };
    if mask.attestation_type {
        wire.attestation_type.clone_from(&node.attestation_type);
    }
    if mask.x509svid_serial_number {
        wire.x509svid_serial_number = node.serial.as_ref().map(ToString::to_string).unwrap_or_default();
    }
    if mask.x509svid_expires_at {
        wire.x509svid_expires_at = node.not_after.unix_seconds();
    }
    if mask.selectors {
        wire.selectors = selectors_to_wire(&node.selectors);
    }
    if mask.agent_version {
        wire.agent_version.clone_from(&node.agent_version);
    }
    wire.banned = mask.banned && node.banned();
    wire.can_reattest = mask.can_reattest && node.can_reattest;
    wire
}

/// Reads a node that a server sent, for display. A node without serial is one that was banned.
///
/// # Errors
/// When the ID is missing, or a field that is there is malformed.
pub fn agent_from_server(wire: &types::Agent) -> Result<AttestedNode, ConvertError> {
    let serial = match wire.x509svid_serial_number.as_str() {
        "" => None,
        text => Some(
            text.parse::<SerialNumber>()
                .map_err(|_| ConvertError::Serial(text.chars().take(64).collect()))?,
        ),
    };
    Ok(AttestedNode {
        id: spiffe_id_from_wire(wire.id.as_ref(), "invalid agent ID")?,
        attestation_type: wire.attestation_type.clone(),
        serial,
        not_after: instant(wire.x509svid_expires_at),
        new_serial: None,
        new_not_after: Timestamp::from_unix_seconds(0),
        selectors: selectors_from_wire(&wire.selectors).map_err(ConvertError::Selector)?,
        can_reattest: wire.can_reattest,
        agent_version: wire.agent_version.clone(),
        evidence_until: None,
    })
}

/// The token for the wire.
#[must_use]
pub fn join_token_to_wire(token: &JoinToken) -> types::JoinToken {
    types::JoinToken { value: token.value.clone(), expires_at: token.expires_at.unix_seconds() }
}

/// Reads a token that a server made. The wire does not say for which agent.
#[must_use]
pub fn join_token_from_server(token: types::JoinToken) -> JoinToken {
    JoinToken { value: token.value, expires_at: instant(token.expires_at), agent_id: None }
}
