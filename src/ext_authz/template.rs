//! Templates of paths, hosts and certificate names, with one place that is captured.

use percent_encoding::percent_decode_str;

/// A template of URL paths, such as `/organizations/{organization}/**`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathTemplate {
    segments: Vec<Segment>,
    /// Whether further segments may follow: the template ends with `/**`.
    is_open: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Literal(String),
    /// `*`: any one segment.
    Any,
    Captured,
}

/// A template of one text with a captured part, such as `{organization}.example.com`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextTemplate {
    prefix: String,
    suffix: String,
    /// Characters that separate parts: the captured part has none of them.
    separators: &'static [char],
}

/// Reason why a template is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The path does not begin with a slash.
    #[error("must begin with \"/\"")]
    Relative,
    /// A segment is empty, `.` or `..`, or has a character that no path has.
    #[error("has the segment {0:?}, which no request has after normalization")]
    Segment(String),
    /// `**` stands before the end.
    #[error("may have \"**\" only at the end")]
    OpenBeforeEnd,
    /// The captured part is missing, or occurs twice.
    #[error("must have {0} exactly once")]
    Captured(String),
}

impl PathTemplate {
    /// Parses a template with `{name}` as one of its segments.
    ///
    /// # Errors
    /// See [`TemplateError`].
    pub fn parse(template: &str, name: &str) -> Result<Self, TemplateError> {
        let captured = format!("{{{name}}}");
        let rest = template.strip_prefix('/').ok_or(TemplateError::Relative)?;
        let (rest, is_open) = match rest.strip_suffix("**") {
            Some("") => ("", true),
            Some(rest) => match rest.strip_suffix('/') {
                Some(rest) => (rest, true),
                None => return Err(TemplateError::Segment(last_segment(template))),
            },
            None => (rest, false),
        };
        let segments = rest.split('/').map(|segment| match segment {
            "*" => Ok(Segment::Any),
            "**" => Err(TemplateError::OpenBeforeEnd),
            _ if segment == captured => Ok(Segment::Captured),
            _ if is_plain(segment) && !segment.contains(['{', '}', '*', '?', '#']) => {
                Ok(Segment::Literal(segment.to_owned()))
            }
            _ => Err(TemplateError::Segment(segment.to_owned())),
        });
        let segments = segments.collect::<Result<Vec<_>, _>>()?;
        let mut places = segments.iter().filter(|it| **it == Segment::Captured);
        if places.next().is_none() || places.next().is_some() {
            return Err(TemplateError::Captured(captured));
        }
        Ok(Self { segments, is_open })
    }

    /// The captured segment of a request's path, decoded. `None` if the path does not match, or
    /// if two servers could read it differently: with an empty segment, `.`, `..`, a backslash, an
    /// encoded slash, or a segment that is encoded twice.
    #[must_use]
    pub fn capture(&self, path_and_query: &str) -> Option<String> {
        let path = path_and_query.split(['?', '#']).next()?;
        let found: Vec<_> = path.strip_prefix('/')?.split('/').collect();
        // A slash at the end.
        let found = match found.split_last() {
            Some((&"", rest)) if self.is_open => rest,
            _ => &found[..],
        };
        let is_too_long = found.len() > self.segments.len() && !self.is_open;
        if found.len() < self.segments.len() || is_too_long {
            return None;
        }
        let decoded = found.iter().map(|segment| decode(segment));
        let decoded = decoded.collect::<Option<Vec<_>>>()?;
        let mut captured = None;
        for (segment, found) in self.segments.iter().zip(decoded) {
            match segment {
                Segment::Literal(literal) if *literal != found => return None,
                Segment::Literal(_) | Segment::Any => {}
                Segment::Captured => captured = Some(found),
            }
        }
        captured
    }
}

impl TextTemplate {
    /// Parses a template with `{name}` as a part, of a text whose parts have these separators.
    ///
    /// # Errors
    /// [`TemplateError::Captured`].
    pub fn parse(
        template: &str,
        name: &str,
        separators: &'static [char],
    ) -> Result<Self, TemplateError> {
        let captured = format!("{{{name}}}");
        match template.split_once(&captured) {
            Some((prefix, suffix)) if !suffix.contains(&captured) => Ok(Self {
                prefix: prefix.to_owned(),
                suffix: suffix.to_owned(),
                separators,
            }),
            _ => Err(TemplateError::Captured(captured)),
        }
    }

    /// The captured part of a text. `None` if the text does not match, or the part is empty or has
    /// a separator.
    #[must_use]
    pub fn capture<'a>(&self, text: &'a str) -> Option<&'a str> {
        let part = text.strip_prefix(&self.prefix)?;
        let part = part.strip_suffix(&self.suffix)?;
        (!part.is_empty() && !part.contains(self.separators)).then_some(part)
    }
}

/// A segment of a path, decoded. `None` if two servers could read it differently.
fn decode(segment: &str) -> Option<String> {
    let decoded = percent_decode_str(segment).decode_utf8().ok()?;
    is_plain(&decoded).then(|| decoded.into_owned())
}

fn is_plain(segment: &str) -> bool {
    let is_empty_or_dots = matches!(segment, "" | "." | "..");
    !is_empty_or_dots && !segment.contains(['/', '\\', ';', '\0']) && !is_encoded(segment)
}

/// Whether decoding would change a text.
fn is_encoded(text: &str) -> bool {
    percent_decode_str(text).ne(text.bytes())
}

fn last_segment(template: &str) -> String {
    let last = template.rsplit('/').next();
    last.unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(template: &str) -> PathTemplate {
        PathTemplate::parse(template, "organization").unwrap()
    }

    #[test]
    fn a_path_template_captures_one_segment() {
        let exact = path("/v1/organizations/{organization}/*/notes");
        let open = path("/organizations/{organization}/**");
        for (template, request, captured) in [
            (&exact, "/v1/organizations/acme/7/notes", Some("acme")),
            (
                &exact,
                "/v1/organizations/acme/7/notes?x=/../y",
                Some("acme"),
            ),
            (&exact, "/v1/organizations/a%63me/7/notes", Some("acme")),
            (&exact, "/v1/organizations/acme/7/notes/8", None),
            (&exact, "/v1/organizations/acme/7/notes/", None),
            (&exact, "/v1/organizations/acme/7", None),
            (&exact, "/V1/organizations/acme/7/notes", None),
            (&open, "/organizations/acme", Some("acme")),
            (&open, "/organizations/acme/", Some("acme")),
            (&open, "/organizations/acme/x/y", Some("acme")),
            (&open, "/organizations/", None),
            (&open, "/organizations", None),
            (&open, "organizations/acme", None),
        ] {
            assert_eq!(template.capture(request).as_deref(), captured, "{request}");
        }
    }

    #[test]
    fn a_path_that_two_servers_could_read_differently_does_not_match() {
        let open = path("/organizations/{organization}/**");
        for request in [
            "/organizations/acme/../other/notes",
            "/organizations/acme/%2e%2E/other",
            "/organizations/acme/./x",
            "/organizations/acme//x",
            "//organizations/acme",
            "/organizations/acme%2Fother",
            "/organizations/acme%5cother",
            "/organizations/acme\\other",
            "/organizations/acme;x=1/y",
            "/organizations/acme%00",
            "/organizations/%ff",
            "/organizations/acme/%252e%252e",
            "/organizations/acme%252fother",
        ] {
            assert_eq!(open.capture(request), None, "{request}");
        }
    }

    #[test]
    fn a_template_must_have_one_captured_part() {
        let rejected = |template| PathTemplate::parse(template, "organization").unwrap_err();
        let captured = || TemplateError::Captured("{organization}".to_owned());
        assert_eq!(rejected("/organizations"), captured());
        assert_eq!(rejected("/{organization}/{organization}"), captured());
        assert_eq!(rejected("/**"), TemplateError::Segment(String::new()));
        assert_eq!(rejected("{organization}"), TemplateError::Relative);
        assert_eq!(rejected("/**/{organization}"), TemplateError::OpenBeforeEnd);
        for (template, segment) in [
            ("/a//{organization}", ""),
            ("/a/../{organization}", ".."),
            ("/{organisation}", "{organisation}"),
            ("/a{organization}", "a{organization}"),
            ("/{organization}/x**", "x**"),
            ("/{organization}/x?y", "x?y"),
        ] {
            assert_eq!(
                rejected(template),
                TemplateError::Segment(segment.to_owned())
            );
        }
        let text = |template| TextTemplate::parse(template, "organization", &['.']);
        assert_eq!(text("example.com"), Err(captured()));
        assert_eq!(text("{organization}.{organization}"), Err(captured()));
    }

    #[test]
    fn a_text_template_captures_what_stands_between_its_ends() {
        let host = "{organization}.example.com";
        let host = TextTemplate::parse(host, "organization", &['.']).unwrap();
        assert_eq!(host.capture("acme.example.com"), Some("acme"));
        assert_eq!(host.capture(".example.com"), None);
        assert_eq!(host.capture("example.com"), None);
        assert_eq!(host.capture("acme.example.org"), None);
        assert_eq!(host.capture("x.acme.example.com"), None);
        let name = "spiffe://example.org/users/{user}";
        let name = TextTemplate::parse(name, "user", &['/', ',', '=']).unwrap();
        assert_eq!(
            name.capture("spiffe://example.org/users/olivia"),
            Some("olivia")
        );
        assert_eq!(name.capture("spiffe://example.org/users/"), None);
        assert_eq!(name.capture("spiffe://example.org/users/olivia/x"), None);
    }
}
