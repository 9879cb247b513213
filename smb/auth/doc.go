// Package auth proves who a user is: SPNEGO ([MS-SPNG], RFC 4178) with NTLMv2 ([MS-NLMP]) inside, as initiator (client) and
// acceptor (server). Tokens go in, tokens and a session key come out; carrying them is the caller's business.
//
// SPNEGO is a layer that chooses among mechanisms and protects the choice with mechListMIC. A mechanism is a [MechInitiator]
// or a [MechAcceptor]; NTLM is one, Kerberos ([MS-KILE], RFC 4121, on the messages and ciphers of gokrb5) the other. [Kerberos] gets a client's tickets,
// [KerberosService] is a server's keytab. Peers that send NTLM without SPNEGO around it are understood.
//
// Of NTLM only version 2 is spoken, with extended session security and 128-bit keys, in both roles. LM and NTLMv1 responses are
// refused, and never sent. A session is anonymous only when that was asked for by name.
//
// Passwords and hashes never appear in errors, nor in what String, GoString and LogValue of a type return.
package auth
