//! Paths written without loss whatever their bytes are.

use std::ffi::{OsStr, OsString};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::os;

/// Any path, as the manifest has it: the member `path` for people, and the member `pathHex` with
/// the exact name where that is not Unicode (any bytes on Unix, lone surrogates on Windows, which
/// `path` shows as U+FFFD). It is the name's bytes in hexadecimal on Unix, its UTF-16 units of four
/// digits each on Windows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WrittenPath {
    path: String,
    #[serde(rename = "pathHex", default, skip_serializing_if = "Option::is_none")]
    hex: Option<String>,
}

impl From<OsString> for WrittenPath {
    fn from(exact: OsString) -> Self {
        match exact.into_string() {
            Ok(path) => Self { path, hex: None },
            Err(exact) => Self {
                path: exact.to_string_lossy().into_owned(),
                hex: Some(os::to_hex(&exact)),
            },
        }
    }
}

impl WrittenPath {
    /// The exact path; `None` if the hexadecimal digits are none.
    pub(crate) fn exact(self) -> Option<OsString> {
        match self.hex {
            None => Some(OsString::from(self.path)),
            Some(hex) => os::from_hex(&hex),
        }
    }
}

/// A path of plain components below some root: never empty, absolute, or with `..` in it, so that
/// joining it to a folder stays inside that folder. It is written with `/` between components.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "WrittenPath", into = "WrittenPath")]
pub(crate) struct RelativePath(PathBuf);

/// A path that does not stay below its root.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a path below a folder")]
pub(crate) struct NotRelative(String);

impl RelativePath {
    pub(crate) fn new(path: &Path) -> Result<Self, NotRelative> {
        let plain = path
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        if plain && path.components().next().is_some() {
            // Collected anew so that equal paths are equal however they were spelled.
            Ok(Self(path.components().collect()))
        } else {
            Err(NotRelative(path.display().to_string()))
        }
    }

    pub(crate) fn as_path(&self) -> &Path {
        &self.0
    }

    /// The path for people, with `/` between components.
    pub(crate) fn display(&self) -> String {
        slashed(&self.0).to_string_lossy().into_owned()
    }
}

fn slashed(path: &Path) -> OsString {
    let parts: Vec<&OsStr> = path.iter().collect();
    parts.join(OsStr::new("/"))
}

impl From<RelativePath> for WrittenPath {
    fn from(relative: RelativePath) -> Self {
        slashed(&relative.0).into()
    }
}

impl TryFrom<WrittenPath> for RelativePath {
    type Error = NotRelative;

    fn try_from(written: WrittenPath) -> Result<Self, NotRelative> {
        let shown = written.path.clone();
        let exact = written.exact().ok_or(NotRelative(shown))?;
        Self::new(Path::new(&exact))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(path: &Path) -> (String, RelativePath) {
        let relative = RelativePath::new(path).unwrap();
        let json = serde_json::to_string(&relative).unwrap();
        let back = serde_json::from_str(&json).unwrap();
        assert_eq!(relative, back, "{json}");
        (json, back)
    }

    #[test]
    fn unicode_names_are_written_as_they_are() {
        let (json, _) = round_trip(&Path::new("grüße").join("日本 🎒.txt"));
        assert_eq!(json, r#"{"path":"grüße/日本 🎒.txt"}"#);
    }

    #[cfg(unix)]
    #[test]
    fn other_bytes_are_written_exactly() {
        use std::os::unix::ffi::OsStrExt;
        let (json, _) = round_trip(Path::new(OsStr::from_bytes(b"a/\xff\\")));
        assert_eq!(json, r#"{"path":"a/�\\","pathHex":"612fff5c"}"#);
    }

    #[cfg(windows)]
    #[test]
    fn lone_surrogates_are_written_exactly() {
        use std::os::windows::ffi::OsStringExt;
        let name = OsString::from_wide(&[0x61, 0xd800]);
        let (json, _) = round_trip(Path::new(&name));
        assert_eq!(json, r#"{"path":"a�","pathHex":"0061d800"}"#);
    }

    #[test]
    fn a_path_that_leaves_its_folder_is_refused() {
        for path in ["", "..", "a/../../b", "/etc/passwd"] {
            assert!(RelativePath::new(Path::new(path)).is_err(), "{path}");
            let json = serde_json::json!({ "path": path });
            assert!(
                serde_json::from_value::<RelativePath>(json).is_err(),
                "{path}"
            );
        }
    }
}
