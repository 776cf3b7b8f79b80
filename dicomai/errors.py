"""Every error that dicomai raises on purpose.

::

    DicomaiError
    ├── ConfigurationError      the call or the configuration is wrong (exit status 2)
    ├── InputError              the images cannot be used as they are; no retry helps
    │   ├── GeometryError       missing, duplicate or uneven slices, tilt, mixed sizes
    │   ├── NotAcceptedError    not what the bundle was made for, or not what was announced
    │   ├── TooLargeError       more bytes than are taken
    │   ├── UnreadableError     pixels or attributes that cannot be decoded
    │   └── IdentityError       doubt about whose images these are: a person decides
    ├── BundleError             a model's folder or weights are wrong
    ├── InferenceError          the network did not run, or its answer is not usable
    ├── StoreError              the disk or the index failed; the sender should try again
    │   ├── StorageFullError    no room
    │   └── ContendedError      two transactions waited for each other, and this one gave way
    ├── WorklistError           a step that the state of a workitem does not allow
    │   └── StaleAttemptError   another worker has taken the item over
    └── DeliveryError           a destination did not take an object, or a source did not give one
        ├── UnreachableError    no connection, or it broke: try again
        │   ├── NoAssociationError  not even an association: ask for that alone, before more is sent
        │   └── NotKeptError    the peer cannot make sense of an object, or lost it: try again, but not for ever
        └── RejectedError       the peer said no for good
            └── NotAdmittedError    it has no association with us at all, until a person corrects that

An error says whether a retry can help (`retryable`); its text is one sentence that names the thing, the value
and what to do, without a patient's name or birth date in it.
"""

from typing import ClassVar


class DicomaiError(Exception):
    """The root: catch it where a sentence for a person is to be shown."""

    retryable: ClassVar[bool] = False


class ConfigurationError(DicomaiError):
    """The call or the configuration is wrong."""


class InputError(DicomaiError):
    """The images cannot be used as they are."""


class GeometryError(InputError):
    """The slices do not make a volume."""


class NotAcceptedError(InputError):
    """The images are not what the bundle was made for, or not what their sender announced."""


class TooLargeError(InputError):
    """An instance has more bytes than are taken."""


class UnreadableError(InputError):
    """Pixels or attributes cannot be decoded."""


class IdentityError(InputError):
    """It is in doubt whose images these are; a person has to decide."""


class BundleError(DicomaiError):
    """A model's folder, configuration or weights are wrong."""


class InferenceError(DicomaiError):
    """The network did not run, or what it gave cannot be a result."""

    retryable = True


class StoreError(DicomaiError):
    """The disk or the index failed."""

    retryable = True


class StorageFullError(StoreError):
    """There is no room for another instance."""


class ContendedError(StoreError):
    """Two transactions waited for each other: the database undid this one, and it may be tried again at once."""


class WorklistError(DicomaiError):
    """The state of a workitem does not allow this step."""


class StaleAttemptError(WorklistError):
    """Another worker has taken the item over; this attempt may change nothing."""


class DeliveryError(DicomaiError):
    """A destination did not take an object, or a source did not give one."""


class UnreachableError(DeliveryError):
    """No connection, or it broke in the middle."""

    retryable = True


class NoAssociationError(UnreachableError):
    """There was no association to be had for now: nothing else can be sent to this peer either."""


class NotKeptError(UnreachableError):
    """The peer cannot make sense of an object, or has lost what it accepted; another try may help, many do not."""


class RejectedError(DeliveryError):
    """The peer answered that it will not have the object, or not give it."""


class NotAdmittedError(RejectedError):
    """The peer will have no association with us until a person corrects that, there or here; no object is to blame."""
