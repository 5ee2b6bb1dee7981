"""A container from a kept image, whose init is a C program that plays and reads input as Android's own code does."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import wave
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.device.evdev import INFO_BYTES, EventDecoder
from tests.integration.support import Sandbox, eventually
from tests.support import REPOSITORY, need_root, need_tool

FRAMES = 44_100

INIT = r"""
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int dial(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, path);
    for (;;) {
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0) return fd;
        close(fd);
        usleep(50000);
    }
}

static void play(void) {
    int16_t buffer[2048];
    char kind = 0, answer = 9;
    int fd = dial("/dev/anbox_audio"), frame = 0;
    write(fd, &kind, 1);
    if (read(fd, &answer, 1) != 1 || answer != kind) exit(3);
    while (frame < FRAMES) {
        int count = 0;
        while (count < 2048 && frame < FRAMES) {
            buffer[count++] = frame % 30000 + 1;
            buffer[count++] = -(frame % 30000) - 1;
            frame++;
        }
        for (size_t sent = 0, whole = count * 2; sent < whole;) {
            ssize_t now = write(fd, (char *)buffer + sent, whole - sent);
            if (now <= 0) exit(4);
            sent += now;
        }
    }
    close(fd);
}

int main(void) {
    signal(SIGPIPE, SIG_IGN);
    signal(SIGPWR, _exit);
    signal(SIGTERM, _exit);
    int input = dial("/dev/input/event2");
    int out = open("/data/input", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    play();
    char data[65536];
    ssize_t count;
    while ((count = read(input, data, sizeof data)) > 0) write(out, data, count);
    for (;;) pause();
}
"""


class ImageTests(SynchronousTestCase):
    def setUp(self) -> None:
        need_root()
        for tool in ("lxc-start", "gcc", "mksquashfs", "adb"):
            need_tool(tool)
        self.box = Sandbox(self)
        self.images = str(self.box.directory / "images")

    def image(self) -> str:
        tree = self.box.directory / "tree"
        for name in ("dev", "proc", "sys", "data", "cache", "sdcard", "system"):
            (tree / name).mkdir(parents=True)
        source = self.box.directory / "init.c"
        source.write_text(INIT)
        compile_it = [
            "gcc",
            "-static",
            "-O1",
            "-w",
            f"-DFRAMES={FRAMES}",
            "-o",
            str(tree / "init"),
            str(source),
        ]
        subprocess.run(compile_it, check=True)
        path = str(self.box.directory / "android.squashfs")
        subprocess.run(["mksquashfs", str(tree), path, "-quiet", "-no-progress", "-all-root"], check=True)
        return path

    def anbox(self, *arguments: str, code: int = 0) -> str:
        done = self.box.anbox(*arguments, ANBOX_IMAGES=self.images)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return done.stdout if code == 0 else done.stderr

    def container(self) -> dict[str, Any]:
        listed = json.loads(self.anbox("ps", "--json"))
        return dict(listed[0].get("container", {})) if listed else {}

    def test_sound_and_input_of_a_c_program_in_a_kept_image(self) -> None:
        self.anbox("image", "import", self.image(), "--name", "seven")
        heard = self.box.directory / "heard.wav"
        self.box.up(
            *("--image", "seven", "--backend", "lxc", "--audio", f"wav:{heard}"), ANBOX_IMAGES=self.images
        )
        eventually(lambda: self.container().get("state") == "running", "the container runs", 60)
        self.assertIn("in use", self.anbox("image", "rm", "seven", code=2))
        data = Path(self.container()["data_path"]) / "data/input"
        eventually(
            lambda: data.exists() and data.stat().st_size >= INFO_BYTES, "the guest reads its input", 60
        )
        vectors = json.loads((REPOSITORY / "protocols/input/vectors/devices.json").read_text())
        self.assertEqual(data.read_bytes()[:INFO_BYTES].hex(), vectors["info"][2]["hex"])

        expected = b"".join(struct.pack("<hh", n % 30000 + 1, -(n % 30000) - 1) for n in range(FRAMES))
        size = len(expected) + 44
        eventually(lambda: heard.exists() and os.path.getsize(heard) >= size, "the sound is heard", 60)
        with wave.open(str(heard)) as found:
            self.assertTrue(found.readframes(1 << 30) == expected)

        self.anbox("input", "tap", "11", "22")
        eventually(lambda: data.stat().st_size >= INFO_BYTES + 24 * 6, "the tap is seen")
        events = [one.event for one in EventDecoder().receive_data(data.read_bytes())]
        self.assertEqual(
            [(event.type, event.code, event.value) for event in events],
            [(3, 0x39, 1), (3, 0x35, 11), (3, 0x36, 22), (0, 0, 0), (3, 0x39, -1), (0, 0, 0)],
        )
        self.anbox("down")
        self.anbox("image", "rm", "seven")
