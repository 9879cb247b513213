// Package crypt holds the cryptography of SMB 2 and 3: key derivation, the pre-authentication integrity hash, signing, and sealing
// (encryption). [MS-SMB2] 3.1.4
//
// Keys are derived once per session ([DeriveKeys]); a [Signer] and a [Sealer] made of them may then be used by any number of goroutines at
// the same time, so that messages are signed and sealed on as many cores as there are. Neither allocates once warm.
//
// AES, GCM, SHA-2 and HMAC are those of the standard library. CMAC and CCM, which it lacks, are ours: on amd64 with loops in assembly that let
// the AES unit wait as little as CBC-MAC allows, elsewhere (and with the build tag purego) on top of the library's CBC and GCM.
package crypt
