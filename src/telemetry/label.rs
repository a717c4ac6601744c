/// Defines an enum whose variants are the values of a metric's label: `ALL` lists them, `name` is the value.
macro_rules! label {
    ($(#[$attribute:meta])* $visibility:vis enum $name:ident {
        $($(#[$of_variant:meta])* $variant:ident = $value:literal),+ $(,)?
    }) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        $visibility enum $name { $($(#[$of_variant])* $variant),+ }

        impl $name {
            $visibility const ALL: [Self; [$(Self::$variant),+].len()] = [$(Self::$variant),+];

            $visibility const fn name(self) -> &'static str {
                match self { $(Self::$variant => $value),+ }
            }
        }
    };
}

pub(crate) use label;
