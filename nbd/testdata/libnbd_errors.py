# The server side of libnbd's tests of client mistakes, restated: libnbd's own checks are switched off, so that the mistake reaches the server. Each
# case has the name of libnbd's test. Usage: python3 libnbd_errors.py CASE URI URI-of-the-read-only-export SIZE
import errno, sys, nbd

case, uri, read_only, size = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])


def connect(to, lenient):
    h = nbd.NBD()
    h.connect_uri(to)
    h.set_strict_mode(h.get_strict_mode() & ~lenient)
    return h


def refused(h, want, what, call, *args):
    """call fails with the error number want, and was sent: the error is the server's."""
    try:
        call(*args)
    except nbd.Error as e:
        if e.errnum not in want:
            sys.exit("%s: %s instead of one of %s" % (what, e, [errno.errorcode[w] for w in want]))
    else:
        sys.exit("%s: the server did not refuse it" % what)


def alive(h):
    """The connection goes on after a refusal."""
    if len(h.pread(4096, 0)) != 4096:
        sys.exit("the connection does not work afterwards")
    h.shutdown()


if case == "errors-server-oversize":
    h = connect(uri, getattr(nbd, "STRICT_PAYLOAD", 0))  # libnbd has no such check before 1.16
    most = h.get_block_size(nbd.SIZE_MAXIMUM)
    refused(h, [errno.EINVAL], "WRITE", h.pwrite, bytearray(most + 4096), 0)
    refused(h, [errno.EINVAL, errno.EOVERFLOW], "READ", h.pread, most + 4096, 0)
elif case == "errors-server-unadvertised-cmd":
    h = connect(read_only, nbd.STRICT_COMMANDS)
    for what, call, args in (("TRIM", h.trim, (512, 0)), ("WRITE", h.pwrite, (bytearray(512), 0)), ("WRITE_ZEROES", h.zero, (512, 0))):
        refused(h, [errno.EPERM], what, call, *args)
    refused(h, [errno.EINVAL], "BLOCK_STATUS", h.block_status, 512, 0, lambda *a: 0)
elif case == "errors-server-unaligned":
    h = connect(uri, nbd.STRICT_ALIGN)
    refused(h, [errno.EINVAL], "READ", h.pread, 1, 1)
    refused(h, [errno.EINVAL], "WRITE", h.pwrite, bytearray(512), 1)
    refused(h, [errno.EINVAL], "TRIM", h.trim, 511, 0)
elif case == "errors-server-unknown-flags":
    h = connect(uri, nbd.STRICT_FLAGS)
    refused(h, [errno.EINVAL], "READ", h.pread, 512, 0, nbd.CMD_FLAG_MASK + 1)
    refused(h, [errno.EINVAL], "WRITE", h.pwrite, bytearray(512), 0, nbd.CMD_FLAG_MASK + 1)
elif case == "errors-server-zerosize":
    h = connect(uri, nbd.STRICT_ZERO_SIZE)
    refused(h, [errno.EINVAL], "READ", h.pread, 0, 0)
    refused(h, [errno.EINVAL], "WRITE", h.pwrite, bytearray(0), 0)
    refused(h, [errno.EINVAL], "TRIM", h.trim, 0, 0)
elif case == "errors-server-invalid-offset":
    h = connect(uri, nbd.STRICT_BOUNDS)
    refused(h, [errno.EINVAL], "READ", h.pread, 512, size)
    refused(h, [errno.ENOSPC], "WRITE", h.pwrite, bytearray(512), size)
    refused(h, [errno.EINVAL], "TRIM", h.trim, 512, 1 << 62)
    refused(h, [errno.ENOSPC], "WRITE_ZEROES", h.zero, 1024, size - 512)
else:
    sys.exit("there is no case " + case)
alive(h)
