//! Pages of a listing (contract of the listing calls: a token is the row of the last item, in decimal).

use tonic::Status;

/// Which part of a listing a caller wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Page {
    /// Items after this row.
    pub(super) after: u64,
    /// So many at most.
    pub(super) limit: usize,
}

impl Page {
    /// Reads size and token. Size zero means everything; the token is then ignored.
    pub(super) fn parse(size: i32, token: &str, what: &str) -> Result<Self, Status> {
        let Some(limit) = usize::try_from(size).ok().filter(|limit| *limit > 0) else {
            return Ok(Self { after: 0, limit: usize::MAX });
        };
        if token.is_empty() {
            return Ok(Self { after: 0, limit });
        }
        let after = token
            .parse()
            .map_err(|_| Status::internal(format!("{what}: could not parse token '{token}'")))?;
        Ok(Self { after, limit })
    }

    /// The token of the next page: empty when this one was not full, for then there is none.
    pub(super) fn next_token<T>(self, items: &[(u64, T)]) -> String {
        match items.last() {
            Some((row, _)) if items.len() == self.limit => row.to_string(),
            _ => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages() {
        let all = Page { after: 0, limit: usize::MAX };
        assert_eq!(Page::parse(0, "x", "failed").unwrap(), all);
        assert_eq!(Page::parse(-1, "", "failed").unwrap(), all);
        assert_eq!(Page::parse(2, "17", "failed").unwrap(), Page { after: 17, limit: 2 });
        let error = Page::parse(2, "x", "failed to list entries").unwrap_err();
        assert_eq!(error.code(), tonic::Code::Internal);
        assert_eq!(error.message(), "failed to list entries: could not parse token 'x'");
        let page = Page { after: 0, limit: 2 };
        assert_eq!(page.next_token(&[(3, ()), (9, ())]), "9");
        assert_eq!(page.next_token(&[(3, ())]), "");
    }
}
