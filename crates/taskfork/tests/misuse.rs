//! Mistakes in a typed interface are compile errors that point at the line and say what to do.

#[test]
fn mistakes_are_told_where_they_are() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/misuse/fail_*.rs");
}
