"""Android's system properties: the store, the socket that sets them, and its client."""

from anbox_tw.android.properties._wire import Status, is_legal_name
from anbox_tw.android.properties.client import get_property, list_properties, set_property
from anbox_tw.android.properties.service import PropertyService, may_set
from anbox_tw.android.properties.store import PropertyRefused, PropertyStore

__all__ = [
    "PropertyRefused",
    "PropertyService",
    "PropertyStore",
    "Status",
    "get_property",
    "is_legal_name",
    "list_properties",
    "may_set",
    "set_property",
]
