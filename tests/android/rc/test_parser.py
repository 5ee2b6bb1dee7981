"""The rc language: words, sections, errors that do not stop the reader, and printing back."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.android.errors import RcError
from anbox_tw.android.rc import RcConfig, expand, format_config, lint, parse, references
from anbox_tw.android.rc._keywords import COMMANDS, OPTIONS
from anbox_tw.android.rc._lexer import LexProblem, Line, lex

SAMPLE = """\
# every option of 7.0
import /init.${ro.hardware}.rc

on early-init && property:a.b=*
    write /proc/x "0 2147483647"
    setprop a ${b}
    exec - system system -- /bin/true a\\ b
on property:c=1
    start daemon

service daemon /system/bin/daemon --flag "two words" \\
        folded
    class main
    console
    critical
    disabled
    oneshot
    user system
    group system inet 3004 0x10
    seclabel u:r:daemon:s0
    ioprio be 7
    keycodes 1 114 -3
    setenv HOME /data
    setenv EMPTY ""
    socket daemon stream 660 root system u:object_r:x:s0
    socket notify dgram 0222
    socket packets seqpacket 600 1000
    onrestart restart other
    onrestart write /sys/power/state on
    writepid /dev/cpuset/a /dev/cpuset/b
service other /system/bin/other
"""


def words(text: str) -> list[tuple[str, ...]]:
    return [item.words for item in lex(text) if isinstance(item, Line)]


class LexerTests(SynchronousTestCase):
    def test_words_comments_and_folding(self) -> None:
        cases: list[tuple[str, list[tuple[str, ...]]]] = [
            ("", []),
            ("a b\tc\r\n", [("a", "b", "c")]),
            ("a # not a word\nb", [("a",), ("b",)]),
            ("a#b", [("a#b",)]),
            ("# all \\\nb", [("b",)]),
            ('a "b c" d', [("a", "b c", "d")]),
            ('a"b c"d', [("ab cd",)]),
            ('a ""', [("a", "")]),
            ('a "x\ny" z\nb', [("a", "x\ny", "z"), ("b",)]),
            ("a \\\n   b", [("a", "b")]),
            ("a\\\n   b", [("ab",)]),
            ("a \\\r\n\t b", [("a", "b")]),
            ("a\\ b", [("a b",)]),
            ('\\n\\t\\r\\\\\\q\\"', [('\n\t\r\\q"',)]),
            ("a\\", [("a",)]),
            ('"\\n"', [("\\n",)]),
        ]
        for text, expected in cases:
            self.assertEqual(words(text), expected, repr(text))

    def test_a_line_has_the_number_it_begins_on(self) -> None:
        text = 'a\n\n"q\nr" \\\n b\nlast'
        self.assertEqual([item.number for item in lex(text)], [1, 3, 6])

    def test_an_open_quote_and_a_nul_end_the_file_and_are_told(self) -> None:
        self.assertEqual(
            list(lex('a\nb "c\nd'))[1:],
            [LexProblem(2, "the quote that opens here is never closed: the rest of the file is lost")],
        )
        found = list(lex("a\nb\0c\nd"))
        self.assertEqual(found[:2], [Line(1, ("a",)), Line(2, ("b",))])
        self.assertIsInstance(found[2], LexProblem)
        self.assertEqual(found[2].number, 2)


class ParserTests(SynchronousTestCase):
    def test_the_whole_sample(self) -> None:
        config = parse(SAMPLE, "s.rc")
        self.assertEqual(config.problems, [])
        daemon = config.services["daemon"]
        self.assertEqual(daemon.arguments, ("/system/bin/daemon", "--flag", "two words", "folded"))
        self.assertTrue(daemon.console and daemon.critical and daemon.disabled and daemon.oneshot)
        self.assertEqual((daemon.class_name, daemon.user, daemon.group), ("main", "system", "system"))
        self.assertEqual(daemon.supplementary, ("inet", "3004", "0x10"))
        self.assertEqual((daemon.ioprio, daemon.keycodes), (("be", 7), (1, 114, -3)))
        self.assertEqual(daemon.environment, [("HOME", "/data"), ("EMPTY", "")])
        self.assertEqual(
            [
                (socket.name, socket.type, socket.mode, socket.user, socket.group, socket.seclabel)
                for socket in daemon.sockets
            ],
            [
                ("daemon", "stream", 0o660, "root", "system", "u:object_r:x:s0"),
                ("notify", "dgram", 0o222, "", "", ""),
                ("packets", "seqpacket", 0o600, "1000", "", ""),
            ],
        )
        self.assertEqual([command.words[0] for command in daemon.onrestart], ["restart", "write"])
        self.assertEqual(daemon.writepid, ("/dev/cpuset/a", "/dev/cpuset/b"))
        self.assertEqual(config.services["other"].class_name, "default")
        first = config.actions[0]
        self.assertEqual((first.trigger.event, first.trigger.properties), ("early-init", (("a.b", "*"),)))
        self.assertEqual(first.commands[0].words, ("write", "/proc/x", "0 2147483647"))
        self.assertEqual(str(first.commands[2].location), "s.rc:7")
        self.assertEqual(config.imports[0].path, "/init.${ro.hardware}.rc")

    def test_each_error_names_its_line_and_the_reader_goes_on(self) -> None:
        text = """\
stray line
service short
    class lost
service this-name-is-too-long /x
service bad.name /x
service s /x
    class
    class a b
    ioprio be 8
    ioprio be x
    ioprio xx 1
    socket n what 660
    socket n stream 99x
    socket n stream 10000
    socket n
    group 1 2 3 4 5 6 7 8 9 10 11 12 13 14
    writepid
    keycodes x
    capabilities NET_ADMIN
    nonsense
    class right
on
on a b
on a && b
on property:x
on property:x=1 && property:x=2
on good
    chmod 1
    exec
    wait a b c
    frob
    rm /x
import a b
service s /y
"""
        config = parse(text, "e.rc")
        errors = {
            problem.location.line: problem.message
            for problem in config.problems
            if problem.severity == "error"
        }
        self.assertEqual(
            errors,
            {
                2: "services must have a name and a program",
                4: "invalid service name 'this-name-is-too-long'",
                5: "invalid service name 'bad.name'",
                7: "class requires 1 argument",
                8: "class requires 1 argument",
                9: "priority value must be range 0 - 7",
                10: "priority value must be range 0 - 7",
                11: "ioprio option usage: ioprio <rt|be|idle> <0-7>",
                12: "socket type must be 'dgram', 'stream' or 'seqpacket'",
                13: "socket mode must be octal, at most 7777: '99x'",
                14: "socket mode must be octal, at most 7777: '10000'",
                15: "socket requires between 3 and 6 arguments",
                16: "group requires between 1 and 13 arguments",
                17: "writepid requires at least 1 argument",
                18: "keycodes takes decimal numbers",
                19: "invalid keyword 'capabilities': releases after 7.0 know it",
                20: "invalid keyword 'nonsense'",
                22: "actions must have a trigger",
                23: "&& is the only symbol allowed to concatenate actions",
                24: "multiple event triggers are not allowed",
                25: "property trigger found without matching '='",
                26: "multiple property triggers found for same property",
                28: "chmod requires 2 arguments",
                29: "exec requires at least 1 argument",
                30: "wait requires between 1 and 2 arguments",
                31: "invalid keyword 'frob'",
                33: "single argument needed for import",
                34: "ignored duplicate definition of service 's', first defined at e.rc:6",
            },
        )
        warnings = [problem.location.line for problem in config.problems if problem.severity == "warning"]
        self.assertEqual(warnings, [1, 3])
        self.assertEqual(config.services["s"].class_name, "right")
        self.assertEqual([command.words for command in config.actions[0].commands], [("rm", "/x")])
        self.assertEqual(len(config.errors), len(errors))

    def test_equal_triggers_are_one_action_whatever_their_order(self) -> None:
        config = parse(
            "on property:a=1 && property:b=2\n rm /1\non boot\n rm /2\non property:b=2 && property:a=1\n rm /3\n"
        )
        self.assertEqual([len(action.commands) for action in config.actions], [2, 1])

    def test_an_action_without_commands_is_dropped_and_told(self) -> None:
        config = parse("on boot\nservice a /b\n")
        self.assertEqual(config.actions, [])
        self.assertEqual(
            [str(problem) for problem in config.problems], ["<rc>:1: warning: 'on boot' has no commands"]
        )

    def test_repeated_group_lines_add_up_and_writepid_replaces(self) -> None:
        service = parse("service a /b\n group 1 2\n group 3 4\n writepid /x\n writepid /y /z\n").services["a"]
        self.assertEqual((service.group, service.supplementary), ("3", ("2", "4")))
        self.assertEqual(service.writepid, ("/y", "/z"))

    def test_a_bad_onrestart_command_leaves_the_option_alive(self) -> None:
        config = parse("service a /b\n onrestart frob\n onrestart rm /x\n")
        self.assertEqual([command.words for command in config.services["a"].onrestart], [("rm", "/x")])
        self.assertEqual([problem.severity for problem in config.problems], ["warning"])

    def test_counts_are_those_of_7_0(self) -> None:
        self.assertEqual((len(OPTIONS), len(COMMANDS)), (14, 40))

    @settings(derandomize=True, deadline=None, max_examples=200)
    @given(st.text(alphabet='ab1 \t\r\n"\\#$&=:é\0', max_size=80))
    def test_no_text_stops_it(self, text: str) -> None:
        parse(text)
        parse("on boot\n" + text)
        parse("service a /b\n" + text)


word = st.text(alphabet='ab"\\ #\t\n\ré$', max_size=6)


class RoundTripTests(SynchronousTestCase):
    def again(self, config: RcConfig) -> RcConfig:
        return parse(format_config(config))

    def test_the_sample(self) -> None:
        config = parse(SAMPLE)
        self.assertEqual(self.again(config), config)

    @settings(derandomize=True, deadline=None, max_examples=300)
    @given(
        st.lists(word, min_size=1, max_size=4),
        st.lists(word, max_size=4),
        st.lists(st.from_regex(r"[0-9]{1,3}", fullmatch=True), min_size=1, max_size=30),
    )
    def test_any_words(self, first: list[str], second: list[str], groups: list[str]) -> None:
        config = parse("service s x\non boot\n exec x\n")
        service = config.services["s"]
        service.arguments = tuple(first)
        service.environment = [(item, item) for item in second]
        service.group, *rest = groups
        service.supplementary = tuple(rest)
        config.actions[0].commands[0] = type(config.actions[0].commands[0])(
            ("exec", *first), config.actions[0].location
        )
        self.assertEqual(self.again(config), config)


class ExpandTests(SynchronousTestCase):
    def test_every_form(self) -> None:
        values = {"a.b": "X", "c": "Y"}
        cases = {
            "": "",
            "plain": "plain",
            "${a.b}": "X",
            "1${a.b}2${c}3": "1X2Y3",
            "$a.b": "X",
            "x$$y": "x$y",
            "x$": "x",
            "${none:-d}": "d",
            "${c:-d}": "Y",
        }
        for text, expected in cases.items():
            self.assertEqual(expand(text, lambda name: values.get(name, "")), expected, text)
        for bad in ("${none}", "$none", "${c", "${}", "x${:-y}"):
            with self.assertRaises(RcError):
                expand(bad, lambda name: values.get(name, ""))
        self.assertEqual(references("${x}/$$/${y:-z}"), ["x", "y"])


class LintTests(SynchronousTestCase):
    def test_what_init_takes_and_then_fails_on(self) -> None:
        text = """\
service a relative
    user whoever
    group 1x
    critical
    oneshot
    socket ../x stream 600
    socket {long} stream 600
    socket twice stream 600
    socket twice dgram 600 nobodyknows
    onrestart start ghost
on nowhere
    start ghost
    class_start ghosts
    chmod 8 /x
    mkdir /x 9 who
    chown who /x
    exec --
    setprop .bad x
    setprop good {value}
    write /x ${{open
    start ${{later}}
on property:init.svc.a=walking
    rm /x
""".format(long="l" * 100, value="v" * 92)
        config = parse(text)
        self.assertEqual(config.problems, [])
        found = lint(config, whole=True)
        self.assertEqual({problem.severity for problem in found}, {"warning"})
        self.assertEqual(
            sorted(problem.location.line for problem in found),
            [1] * 9 + [10, 11, 12, 13, 14, 15, 15, 16, 17, 18, 19, 20, 22],
        )
        self.assertLess(len(lint(config)), len(found))
        self.assertEqual([problem.location.line for problem in lint(parse(SAMPLE), whole=True)], [11])
