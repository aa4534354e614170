//! [`regex_lite`] under the name of `regex`.
//!
//! libcontainer and oci-spec check a few short fields with regular expressions (CPU lists, resctrl
//! schemata, image references), and for that bring an engine and Unicode's tables that are a
//! twelfth of the guest agent. This is their `regex` instead: by the same authors, with the same
//! syntax and the same linear time, without those. The workspace patches it in.
//!
//! `\w`, `\d` and `\s` are ASCII here, which is what the fields' own specifications say. Byte
//! strings and sets of expressions are not there: who needs them does not compile.

pub use regex_lite::*;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_expressions_of_our_dependencies_compile_and_are_ascii() {
        let affinity = Regex::new(r"^(\d+(-\d+)?)(,\d+(-\d+)?)*$").unwrap();
        assert!(affinity.is_match("0-3,7"));
        assert!(!affinity.is_match("0-"));
        assert!(!affinity.is_match("٣"));
        let schema = Regex::new(
            r"^(?:L3|L3DATA|L3CODE):(?:\s|;)*(?:\w+\s*=\s*[[:xdigit:]]+)?(?:(?:\s*;+\s*)+\w+\s*=\s*[[:xdigit:]]+)*(?:\s|;)*$",
        )
        .unwrap();
        assert!(schema.is_match("L3:0=ff;1=0f"));
        assert!(!schema.is_match("L3:0=fg"));
        let pair = Regex::new(r"(\w+)\s*=\s*0*([[:xdigit:]]+)").unwrap();
        let masks: Vec<&str> = pair
            .captures_iter("L3:0=00ff; 1 = f")
            .map(|pair| pair.get(2).unwrap().as_str())
            .collect();
        assert_eq!(masks, ["ff", "f"]);
    }

    #[test]
    fn a_long_match_ends_in_linear_time() {
        let tag = RegexBuilder::new(r"^(?:[a-z0-9]+(?:[._-][a-z0-9]+)*)*$")
            .size_limit(10 << 21)
            .build()
            .unwrap();
        assert!(!tag.is_match(&("a".repeat(10_000) + "!")));
    }
}
