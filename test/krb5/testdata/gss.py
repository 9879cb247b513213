# One side of a GSS-API exchange with MIT's library, as a judge of ours. Commands come as lines on standard input, each answered with one line:
#   token HEX   -> token HEX done|more      (HEX may be -, for nothing)
#   mic HEX     -> mic HEX                  signs
#   verify HEX MIC -> ok
# or "error" and what is wrong. Arguments: "initiate cifs@HOST" or "accept". Credentials come from the environment.
import ctypes, ctypes.util, sys

lib = ctypes.CDLL("libgssapi_krb5.so.2")
u32, ptr = ctypes.c_uint32, ctypes.c_void_p


class Buffer(ctypes.Structure):
    _fields_ = [("length", ctypes.c_size_t), ("value", ctypes.c_void_p)]


class Oid(ctypes.Structure):
    _fields_ = [("length", u32), ("elements", ctypes.c_void_p)]


keep = []


def buffer(b):
    data = ctypes.create_string_buffer(b, len(b))
    keep.append(data)
    return Buffer(len(b), ctypes.cast(data, ctypes.c_void_p))


def oid(b):
    data = ctypes.create_string_buffer(b, len(b))
    keep.append(data)
    return Oid(len(b), ctypes.cast(data, ctypes.c_void_p))


krb5 = oid(bytes.fromhex("2a864886f712010202"))
hostbased = oid(bytes.fromhex("2a864886f71201020104"))


def text(b):
    return ctypes.string_at(b.value, b.length) if b.length else b""


def check(major, minor):
    if not major & 0xFFFF0000:
        return
    out, more, s = Buffer(), u32(0), []
    for code, kind in ((major, 1), (minor.value, 2)):
        lib.gss_display_status(ctypes.byref(u32()), u32(code), ctypes.c_int(kind), ctypes.byref(krb5), ctypes.byref(more), ctypes.byref(out))
        s.append(text(out).decode())
    raise RuntimeError("; ".join(s))


context, minor = ptr(None), u32(0)
role = sys.argv[1]
name = ptr(None)
if role == "initiate":
    check(lib.gss_import_name(ctypes.byref(minor), ctypes.byref(buffer(sys.argv[2].encode())), ctypes.byref(hostbased), ctypes.byref(name)), minor)


def step(b):
    out, flags = Buffer(), u32(0)
    given = buffer(b)
    if role == "initiate":
        major = lib.gss_init_sec_context(ctypes.byref(minor), None, ctypes.byref(context), name, ctypes.byref(krb5), u32(2 | 4 | 8 | 16 | 32), u32(0), None,
                                         ctypes.byref(given), None, ctypes.byref(out), ctypes.byref(flags), None)
    else:
        major = lib.gss_accept_sec_context(ctypes.byref(minor), ctypes.byref(context), None, ctypes.byref(given), None, None, None, ctypes.byref(out),
                                           ctypes.byref(flags), None, None)
    check(major, minor)
    return text(out), not major & 1


for line in sys.stdin:
    words = line.split()
    try:
        args = [b"" if w == "-" else bytes.fromhex(w) for w in words[1:]]
        if words[0] == "token":
            out, done = step(args[0])
            print("token", out.hex() or "-", "done" if done else "more")
        elif words[0] == "mic":
            out = Buffer()
            check(lib.gss_get_mic(ctypes.byref(minor), context, u32(0), ctypes.byref(buffer(args[0])), ctypes.byref(out)), minor)
            print("mic", text(out).hex())
        elif words[0] == "verify":
            check(lib.gss_verify_mic(ctypes.byref(minor), context, ctypes.byref(buffer(args[0])), ctypes.byref(buffer(args[1])), None), minor)
            print("ok")
    except RuntimeError as e:
        print("error", e)
    sys.stdout.flush()
