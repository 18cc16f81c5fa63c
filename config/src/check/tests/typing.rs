//! Options that are not what they should be.

use super::*;

#[test]
fn what_is_wrong_within_a_text_is_pointed_at_in_every_kind_of_string() {
    check(
        r#"
[sources.access]
type = "tail"
paths = ["a"]

[operators.basic]
type = "filter"
inputs = ["access"]
condition = ".message == \"\u00e9\" && .status >= foo"

[operators.literal]
type = "filter"
inputs = ["basic"]
condition = '.a == nope'

[operators.lines]
type = "filter"
inputs = ["literal"]
condition = """
.a == 1 && \
   .b == 2 &&
	.c == missing
"""

[operators.replaced]
type = "filter"
inputs = ["lines"]
condition = '.a == "${SERVER}" && .b == "${HOME:-x}" && .c == missing'

[operators.branches]
type = "route"
inputs = ["replaced"]
routes = { slow = ".latency > 1", "odd.name" = "wrong ==" }

[sinks.out]
type = "print"
inputs = ["branches"]
"#,
        expect![[r#"
            a.toml:9:51: error: call to undefined variable: did you mean "null"?
            9 | condition = ".message == \"\u00e9\" && .status >= foo"
              |                                                   ^^^

            a.toml:14:20: error: call to undefined variable: did you mean "null"?
            14 | condition = '.a == nope'
               |                    ^^^^

            a.toml:22:8: error: call to undefined variable: did you mean "false"?
            22 | 	.c == missing
               | 	      ^^^^^^^

            a.toml:28:63: error: call to undefined variable: did you mean "false"?
            28 | condition = '.a == "${SERVER}" && .b == "${HOME:-x}" && .c == missing'
               |                                                               ^^^^^^^

            a.toml:33:57: error: it ends where something is still to come
            33 | routes = { slow = ".latency > 1", "odd.name" = "wrong ==" }
               |                                                         ^

            5 problems
        "#]],
    );
}

#[test]
fn values_of_the_wrong_kind_are_told_at_every_level() {
    check_all(
        &[
            (
                "a.toml",
                "sources = 5\noperators.x = true\nsilences = []\ntests = 1\ndaemon = \"x\"\nsorces.a.type = \"b\"\n",
            ),
            ("b.toml", "[[sinks]]\ntype = \"print\"\n[sources.a]\npaths = [\"x\"]\ncodec = 5\n[sources.b]\ntype = 5\n"),
            ("c.toml", "[sources.c]\ntype = \"tail\"\npaths = [5]\ncodec = { type = \"cvs\" }\n"),
            ("d.toml", "[sources.d]\ntype = \"tail\"\npaths = [\"x\"]\ncodec = { type = \"csv\", seperator = 1 }\n"),
            (
                "e.toml",
                "[sources.e]\ntype = \"tail\"\npaths = \"x\"\ncodec.type = \"csv\"\ncodec.columns = []\ncodec.separator = \"ab\"\n",
            ),
        ],
        &[],
        expect![[r#"
            a.toml:1:1: error: `sources` is a table of sources, not a number
            1 | sources = 5
              | ^^^^^^^
            help: write each source as `[sources.NAME]`

            a.toml:2:11: error: the operator `x` is a table, not true or false
            2 | operators.x = true
              |           ^
            help: write each operator as `[operators.NAME]`

            a.toml:4:9: error: `tests` is a list of tables
            4 | tests = 1
              |         ^
            help: write each as `[[tests]]`

            a.toml:5:1: error: `daemon` is a table, not text
            5 | daemon = "x"
              | ^^^^^^
            help: write its options below `[daemon]`

            a.toml:6:1: error: unknown table `sorces`
            6 | sorces.a.type = "b"
              | ^^^^^^
            help: did you mean `sources`?

            b.toml:1:3: error: `sinks` is a table of sinks, not a list
            1 | [[sinks]]
              |   ^^^^^
            help: write each sink as `[sinks.NAME]`

            b.toml:3:1: error: the source `a` has no `type`
            3 | [sources.a]
              | ^^^^^^^^^^^
            help: it is one of `tail`

            b.toml:3:1: error: nothing reads the source `a`
            3 | [sources.a]
              | ^^^^^^^^^^^
            help: name it in the `inputs` of an operator or a sink, or remove it

            b.toml:5:9: error: `codec` is a name or a table, not a number
            5 | codec = 5
              |         ^
            help: write `codec = "json"`, or `codec = { type = "csv", … }`

            b.toml:6:1: error: nothing reads the source `b`
            6 | [sources.b]
              | ^^^^^^^^^^^
            help: name it in the `inputs` of an operator or a sink, or remove it

            b.toml:7:8: error: `type` is the name of a kind of source, not a number
            7 | type = 5
              |        ^
            help: it is one of `tail`

            c.toml:1:1: error: nothing reads the source `c`
            1 | [sources.c]
              | ^^^^^^^^^^^
            help: name it in the `inputs` of an operator or a sink, or remove it

            c.toml:3:10: error: expected text, found the number 5
            3 | paths = [5]
              |          ^

            c.toml:4:18: error: there is no codec of type "cvs"
            4 | codec = { type = "cvs" }
              |                  ^^^^^
            help: did you mean `csv`?

            d.toml:1:1: error: nothing reads the source `d`
            1 | [sources.d]
              | ^^^^^^^^^^^
            help: name it in the `inputs` of an operator or a sink, or remove it

            d.toml:4:9: error: `csv` needs `columns`
            4 | codec = { type = "csv", seperator = 1 }
              |         ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
            help: `columns`: The names of the columns

            d.toml:4:25: error: `csv` has no option `seperator`
            4 | codec = { type = "csv", seperator = 1 }
              |                         ^^^^^^^^^
            help: did you mean `separator`?

            d.toml:4:37: error: expected text, found the number 1
            4 | codec = { type = "csv", seperator = 1 }
              |                                     ^

            e.toml:1:1: error: nothing reads the source `e`
            1 | [sources.e]
              | ^^^^^^^^^^^
            help: name it in the `inputs` of an operator or a sink, or remove it

            e.toml:3:9: error: expected a list, found the text "x"
            3 | paths = "x"
              |         ^^^

            e.toml:6:19: error: "ab" is not one character
            6 | codec.separator = "ab"
              |                   ^^^^

            21 problems
        "#]],
    );
}

#[test]
fn alternatives_of_an_option_are_checked_as_the_one_that_is_meant() {
    check(
        r#"
[sources.a]
type = "tail"
paths = ["x"]
[operators.w]
type = "window"
inputs = ["a"]
shape = { hopping = { size = "5m", ever = "10s" } }
[operators.v]
type = "window"
inputs = ["w"]
shape = { hopping = { size = "5m", every = "10m" } }
[operators.u]
type = "window"
inputs = ["v"]
shape = { tumblin = "5m" }
[operators.t]
type = "window"
inputs = ["u"]
shape.tumbling = "5 m"
state_max = "1 PiB"
[sinks.out]
type = "print"
inputs = ["t"]
"#,
        expect![[r#"
            a.toml:8:36: error: `hopping` has no option `ever`
            8 | shape = { hopping = { size = "5m", ever = "10s" } }
              |                                    ^^^^
            help: did you mean `every`?

            a.toml:12:44: error: windows this far apart leave gaps
            12 | shape = { hopping = { size = "5m", every = "10m" } }
               |                                            ^^^^^

            a.toml:16:11: error: `shape` has no option `tumblin`
            16 | shape = { tumblin = "5m" }
               |           ^^^^^^^
            help: did you mean `tumbling`?

            a.toml:21:13: error: "1 PiB" is not a size
            21 | state_max = "1 PiB"
               |             ^^^^^^^
            help: write "512", "64KiB", "10MB" or "1GiB"

            4 problems
        "#]],
    );
}

#[test]
fn what_can_be_read_again_needs_no_journal() {
    check(
        "[sources.access]\ntype = \"tail\"\npaths = [\"a\"]\njournal = true\njournal_max_bytes = \"1KiB\"\n\n\
         [sinks.out]\ntype = \"print\"\ninputs = [\"access\"]\n",
        expect![[r#"
            a.toml:4:11: error: `tail` can be read again after a crash, so it needs no journal
            4 | journal = true
              |           ^^^^
            help: remove it

            a.toml:5:21: error: too little for a journal
            5 | journal_max_bytes = "1KiB"
              |                     ^^^^^^
            help: write at least "1MiB"; the default is "1GiB"

            2 problems
        "#]],
    );
}
