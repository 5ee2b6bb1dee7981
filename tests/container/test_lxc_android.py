"""What is put into the overlay of a host rootfs, and that nothing outside it is touched."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.container.lxc_android import add_android


class AndroidTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="la-"))
        self.addCleanup(shutil.rmtree, self.root)
        (self.root / "etc").mkdir()
        (self.root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh")
        (self.root / "etc/group").write_text("root:x:0:\n")

    def test_added_once(self) -> None:
        before = os.umask(0o077)
        try:
            self.assertEqual(add_android(str(self.root)), [])
        finally:
            os.umask(before)
        passwd = (self.root / "etc/passwd").read_text()
        self.assertEqual(passwd, "root:x:0:0::/root:/bin/sh\nshell:x:2000:2000:Android shell:/:/bin/sh\n")
        self.assertEqual((self.root / "etc/group").read_text(), "root:x:0:\nshell:x:2000:\n")
        self.assertIn(os.readlink(self.root / "system/bin/sh"), ("/bin/mksh", "/bin/bash", "/bin/sh"))
        self.assertEqual(stat.S_IMODE((self.root / "system/bin").stat().st_mode), 0o755)
        self.assertEqual(add_android(str(self.root)), [])
        self.assertEqual((self.root / "etc/passwd").read_text(), passwd)

    def test_what_is_there_stays(self) -> None:
        (self.root / "system").mkdir()
        (self.root / "etc/passwd").write_text("someone:x:2000:2000::/:/bin/sh\n")
        self.assertEqual(add_android(str(self.root)), [])
        self.assertEqual(os.listdir(self.root / "system"), [])
        self.assertEqual((self.root / "etc/passwd").read_text(), "someone:x:2000:2000::/:/bin/sh\n")

    def test_no_link_leads_out(self) -> None:
        outside = self.root / "outside"
        outside.write_text("mine\n")
        for table in ("passwd", "group"):
            (self.root / "etc" / table).unlink()
            (self.root / "etc" / table).symlink_to(outside)
        notes = add_android(str(self.root))
        self.assertEqual(len(notes), 2)
        self.assertIn("/etc/passwd", notes[0])
        self.assertEqual(outside.read_text(), "mine\n")
