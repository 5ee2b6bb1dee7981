"""The twistd commands and endpoint parsers of anbox-tw. Data only: nothing is imported before it is used."""

from twisted.application.reactors import Reactor
from twisted.application.service import ServiceMaker

from anbox_tw.android.endpoint_plugins import AndroidControlParser, AndroidParser

android_endpoint = AndroidParser()
android_control_endpoint = AndroidControlParser()

anbox_adb_server = ServiceMaker(
    "anbox-adb-server",
    "anbox_tw.adb.server.tap",
    "An adb server for unmodified adb clients: TCP devices and emulators, forwards, tracking.",
    "anbox-adb-server",
)

anbox_container = ServiceMaker(
    "anbox-container",
    "anbox_tw.container.tap",
    "Container manager: runs Android containers for the sessions that ask for them.",
    "anbox-container",
)

anbox_session = ServiceMaker(
    "anbox-session",
    "anbox_tw.session.tap",
    "Session of one container: its pipe, bridge and control sockets, and its place in adb devices.",
    "anbox-session",
)

anbox_init = ServiceMaker(
    "anbox-init",
    "anbox_tw.android.init_tap",
    "Android's init: services, sockets and properties from rc files.",
    "anbox-init",
)

anbox_adbd = ServiceMaker(
    "anbox-adbd",
    "anbox_tw.adb.tap",
    "An adbd: makes this machine, container or directory a device for adb.",
    "anbox-adbd",
)

anbox_installd = ServiceMaker(
    "anbox-installd",
    "anbox_tw.android.installd_tap",
    "installd: makes, measures and deletes the data of Android applications below a directory.",
    "anbox-installd",
)

anbox_netd = ServiceMaker(
    "anbox-netd",
    "anbox_tw.netd.tap",
    "Android's netd: the framework's network commands to the kernel, the kernel's events to the framework.",
    "anbox-netd",
)

anbox_epoll = Reactor(
    "anbox-epoll", "anbox_tw.network.epoll", "epoll with a leaner loop: for relays and many small messages."
)
