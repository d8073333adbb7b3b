//! The one integration-test binary; a module per area.

mod chat;
mod forward;
mod generation;

mod skeleton {
    #[test]
    fn reference_material_is_there() {
        tests::shared("fixtures/tiny/spec.json");
    }
}
