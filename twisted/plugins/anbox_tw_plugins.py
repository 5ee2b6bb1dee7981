"""The twistd commands and endpoint parsers of anbox-tw. Data only: nothing is imported before it is used."""

from anbox_tw.android.endpoint_plugins import AndroidControlParser, AndroidParser

android_endpoint = AndroidParser()
android_control_endpoint = AndroidControlParser()
