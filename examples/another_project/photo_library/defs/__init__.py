"""The project's definitions: `emoji` is the component of `semdedup_assets`; assets of your own lie beside it."""
