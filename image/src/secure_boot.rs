//! Signatures that firmware with Secure Boot asks for, and the keys for them.
//!
//! ```text
//! KEYS/PK.{key,crt,cer}    who may change KEK          enrolled into the firmware
//!      KEK.{key,crt,cer}   who may change db           enrolled
//!      db.{key,crt,cer}    what may be started         enrolled; db.key signs loader, slot and rescue system
//!
//! boot file                signed
//! ┌──────────────┐         ┌──────────────┐
//! │ headers      │         │ headers      │ checksum and directory entry 4 (certificates) anew
//! │ sections     │         │ sections     │ unchanged, zeros to 8 bytes
//! └──────────────┘         │ certificate  │ WIN_CERTIFICATE with PKCS #7 SignedData over SHA-256 of all else
//!                          └──────────────┘
//! ```
//! The format is Microsoft's "Authenticode". The signature is made by `openssl` (RSA with PKCS #1 v1.5 padding, which has
//! nothing random in it), what goes around it is written here, because `sbsign` and its relatives note the time of day:
//! equal builds would not be equal any more.

use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use sha2::{Digest, Sha256};

use crate::error::BuildError;
use crate::host::OPENSSL;
use crate::uki;

/// The firmware's three lists that get a key of ours, the one that signs last.
pub const LISTS: [&str; 3] = ["PK", "KEK", "db"];
/// Larger than any certificate or key.
const KEY_MAX: u64 = 64 * 1024;
/// Of what the keys sign there is one life: a device is not asked for the date by its firmware.
const DAYS: &str = "7300";

const SHA256: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const SIGNED_DATA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02];
const CONTENT_TYPE: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x03];
const MESSAGE_DIGEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x04];
/// Microsoft's SPC_INDIRECT_DATA and SPC_PE_IMAGE_DATA.
const INDIRECT_DATA: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x02, 0x01, 0x04];
const PE_IMAGE_DATA: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x02, 0x01, 0x0f];

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OID: u8 = 0x06;
const OCTETS: u8 = 0x04;
const INTEGER: u8 = 0x02;
/// `[0]` around other values.
const TAGGED: u8 = 0xa0;

/// The key that signs and its certificate.
#[derive(Debug)]
pub(crate) struct Signer {
    key: PathBuf,
    /// DER.
    pub(crate) certificate: Vec<u8>,
}

impl Signer {
    /// Reads what [`make_keys`] made, or keys of elsewhere under the same names.
    pub(crate) fn open(dir: &Path) -> Result<Signer, BuildError> {
        let (key, path) = (dir.join("db.key"), dir.join("db.cer"));
        for file in [&key, &path] {
            let length = fs::metadata(file).map_err(|e| BuildError::read(file, e))?.len();
            if length > KEY_MAX {
                return Err(bad_key(file, format!("it has {length} bytes")));
            }
        }
        let certificate = fs::read(&path).map_err(|e| BuildError::read(&path, e))?;
        issuer_and_serial(&certificate)
            .ok_or_else(|| bad_key(&path, "it is no certificate in DER".into()))?;
        let mut public = OPENSSL.command();
        public.args(["pkey", "-pubout", "-outform", "DER", "-in"]).arg(&key);
        let public = OPENSSL.run(&mut public, &format!("read {}", key.display()), &key, 0)?.stdout;
        // A certificate has the public key as it is.
        if public.is_empty() || !certificate.windows(public.len()).any(|part| part == public) {
            return Err(bad_key(&path, format!("it is not the certificate of {}", key.display())));
        }
        Ok(Signer { key, certificate })
    }

    /// Signs a PE file that has no signature yet.
    pub(crate) fn sign(&self, name: &str, file: &[u8]) -> Result<Vec<u8>, BuildError> {
        let not = |detail: String| BuildError::Unsignable { name: name.to_owned(), detail };
        let mut signed = file.to_vec();
        signed.resize(signed.len().next_multiple_of(8), 0);
        let digest = uki::digest(&signed).map_err(not)?;
        let message = self.pkcs7(&digest)?;
        let mut entry = Vec::new();
        let length = (8 + message.len()).next_multiple_of(8);
        entry.extend(u32::try_from(length).expect("a few kilobytes").to_le_bytes());
        entry.extend(0x0200u16.to_le_bytes()); // revision
        entry.extend(0x0002u16.to_le_bytes()); // PKCS #7
        entry.extend(message);
        entry.resize(length, 0);
        uki::append_certificate(&mut signed, &entry).map_err(not)?;
        Ok(signed)
    }

    fn pkcs7(&self, digest: &[u8; 32]) -> Result<Vec<u8>, BuildError> {
        let algorithm = der(SEQUENCE, &[&der(OID, &[SHA256]), &[0x05, 0x00]]);
        // An empty description of the file, as every signer writes it.
        let obsolete: Vec<u8> = "<<<Obsolete>>>".encode_utf16().flat_map(u16::to_be_bytes).collect();
        let link = der(TAGGED, &[&der(0xa2, &[&der(0x80, &[&obsolete])])]);
        let data = der(SEQUENCE, &[&[0x03, 0x01, 0x00], &link]);
        let kind = der(SEQUENCE, &[&der(OID, &[PE_IMAGE_DATA]), &data]);
        let hash = der(SEQUENCE, &[&algorithm, &der(OCTETS, &[digest])]);
        let content = [kind, hash].concat();

        let content_type =
            der(SEQUENCE, &[&der(OID, &[CONTENT_TYPE]), &der(SET, &[&der(OID, &[INDIRECT_DATA])])]);
        let message = der(OCTETS, &[&Sha256::digest(&content)]);
        let message = der(SEQUENCE, &[&der(OID, &[MESSAGE_DIGEST]), &der(SET, &[&message])]);
        // A set's members are in the order of their bytes: the shorter one is first.
        let attributes = [content_type, message].concat();
        let signature = self.signature(&der(SET, &[&attributes]))?;

        let (issuer, serial) = issuer_and_serial(&self.certificate).expect("checked when it was opened");
        let signer = der(
            SEQUENCE,
            &[
                &der(INTEGER, &[&[1]]),
                &der(SEQUENCE, &[issuer, serial]),
                &algorithm,
                &der(TAGGED, &[&attributes]),
                &der(SEQUENCE, &[&der(OID, &[RSA]), &[0x05, 0x00]]),
                &der(OCTETS, &[&signature]),
            ],
        );
        let content =
            der(SEQUENCE, &[&der(OID, &[INDIRECT_DATA]), &der(TAGGED, &[&der(SEQUENCE, &[&content])])]);
        let signed = der(
            SEQUENCE,
            &[
                &der(INTEGER, &[&[1]]),
                &der(SET, &[&algorithm]),
                &content,
                &der(TAGGED, &[&self.certificate]),
                &der(SET, &[&signer]),
            ],
        );
        Ok(der(SEQUENCE, &[&der(OID, &[SIGNED_DATA]), &der(TAGGED, &[&signed])]))
    }

    fn signature(&self, message: &[u8]) -> Result<Vec<u8>, BuildError> {
        let failed = |source| BuildError::Io { doing: "sign with", path: self.key.clone(), source };
        let mut command = OPENSSL.command();
        command.args(["dgst", "-sha256", "-binary", "-sign"]).arg(&self.key);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        child.stdin.take().expect("piped").write_all(message).map_err(failed)?;
        let output = child.wait_with_output().map_err(failed)?;
        if !output.status.success() || output.stdout.is_empty() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(bad_key(&self.key, said.lines().last().unwrap_or("openssl failed").to_owned()));
        }
        Ok(output.stdout)
    }
}

fn bad_key(path: &Path, detail: String) -> BuildError {
    BuildError::BadKey { path: path.to_owned(), detail }
}

/// Makes a folder with a new key and certificate for each of [`LISTS`]. The folder may not be there yet.
pub fn make_keys(dir: &Path) -> Result<(), BuildError> {
    DirBuilder::new().mode(0o700).create(dir).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => {
            bad_key(dir, "it is there already, and keys are never overwritten".into())
        }
        _ => BuildError::Io { doing: "create", path: dir.to_owned(), source },
    })?;
    for name in LISTS {
        let (key, pem) = (dir.join(format!("{name}.key")), dir.join(format!("{name}.crt")));
        let mut make = OPENSSL.command();
        make.args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-sha256",
            "-nodes",
            "-days",
            DAYS,
            "-config",
            "/dev/null",
        ]);
        make.args(["-subj", &format!("/CN=Evenkeel {name}"), "-addext", "basicConstraints=critical,CA:TRUE"]);
        make.arg("-keyout").arg(&key).arg("-out").arg(&pem);
        OPENSSL.run(&mut make, &format!("make the key {name}"), &key, 0)?;
        let mut convert = OPENSSL.command();
        convert
            .args(["x509", "-outform", "DER", "-in"])
            .arg(&pem)
            .arg("-out")
            .arg(dir.join(format!("{name}.cer")));
        OPENSSL.run(&mut convert, &format!("make the certificate {name}"), dir, 0)?;
    }
    Ok(())
}

/// One value of the "distinguished encoding rules": tag, length, the parts one behind the other.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut bytes = vec![tag];
    if length < 0x80 {
        bytes.push(length as u8);
    } else {
        let digits = length.to_be_bytes();
        let digits = &digits[digits.iter().take_while(|d| **d == 0).count()..];
        bytes.push(0x80 | digits.len() as u8);
        bytes.extend(digits);
    }
    parts.iter().for_each(|part| bytes.extend(*part));
    bytes
}

/// Tag, contents, the whole value, and what is behind it.
type Value<'a> = (u8, &'a [u8], &'a [u8], &'a [u8]);

fn value(bytes: &[u8]) -> Option<Value<'_>> {
    let (tag, first) = (*bytes.first()?, *bytes.get(1)?);
    let (head, length) = match first {
        0..=0x7f => (2, usize::from(first)),
        0x81..=0x83 => {
            let digits = bytes.get(2..2 + usize::from(first & 0x7f))?;
            (2 + digits.len(), digits.iter().fold(0, |n, d| (n << 8) | usize::from(*d)))
        }
        _ => return None,
    };
    Some((tag, bytes.get(head..head + length)?, &bytes[..head + length], &bytes[head + length..]))
}

/// Issuer and serial number of a certificate, whole values.
fn issuer_and_serial(certificate: &[u8]) -> Option<(&[u8], &[u8])> {
    let (SEQUENCE, inside, _, []) = value(certificate)? else { return None };
    let (SEQUENCE, signed, ..) = value(inside)? else { return None };
    let (TAGGED, _, _, rest) = value(signed)? else { return None };
    let (INTEGER, _, serial, rest) = value(rest)? else { return None };
    let (SEQUENCE, _, _, rest) = value(rest)? else { return None };
    let (SEQUENCE, _, issuer, _) = value(rest)? else { return None };
    Some((issuer, serial))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdir::TestDir;
    use std::process::Command;

    fn say(result: Result<Signer, BuildError>) -> String {
        result.unwrap_err().to_string()
    }

    /// `sbverify` of the Debian package sbsigntool: somebody else's idea of the same format.
    fn verified(file: &Path, certificate: &Path) -> bool {
        let output = Command::new("sbverify").arg("--cert").arg(certificate).arg(file).output();
        output.expect("install the Debian package sbsigntool").status.success()
    }

    #[test]
    fn other_peoples_tool_accepts_what_is_signed_and_nothing_else() {
        let dir = TestDir::new("secure-boot");
        let (keys, others) = (dir.path().join("keys"), dir.path().join("others"));
        make_keys(&keys).unwrap();
        make_keys(&others).unwrap();
        let signer = Signer::open(&keys).unwrap();
        let stub = fs::read("/usr/lib/systemd/boot/efi/linuxx64.efi.stub").unwrap();
        let loader = fs::read("/usr/lib/x86_64-linux-gnu/efibootguard/efibootguardx64.efi").unwrap();
        let boot_file = uki::assemble(&stub, &[(".osrel", b"ID=evenkeel"), (".linux", &[7; 1003])]).unwrap();
        for (name, bytes) in [("loader", loader), ("boot file", boot_file)] {
            let path = dir.path().join("file.efi");
            let signed = signer.sign(name, &bytes).unwrap();
            assert_eq!(signed, signer.sign(name, &bytes).unwrap(), "{name}: the same bytes every time");
            assert_eq!(uki::sections(&signed), uki::sections(&bytes));
            fs::write(&path, &signed).unwrap();
            assert!(verified(&path, &keys.join("db.crt")), "{name}");
            assert!(!verified(&path, &others.join("db.crt")), "{name}: another's key");
            let mut changed = signed.clone();
            changed[0x1000] ^= 1;
            fs::write(&path, &changed).unwrap();
            assert!(!verified(&path, &keys.join("db.crt")), "{name}: a byte changed");
            let twice = signer.sign(name, &signed).unwrap_err().to_string();
            assert_eq!(twice, format!("cannot sign the {name}: it is signed already"));
        }
    }

    #[test]
    fn keys_are_never_overwritten_and_wrong_ones_are_named() {
        let dir = TestDir::new("secure-boot-keys");
        let (keys, others) = (dir.path().join("keys"), dir.path().join("others"));
        assert!(say(Signer::open(&keys)).starts_with("cannot read "));
        make_keys(&keys).unwrap();
        make_keys(&others).unwrap();
        let error = make_keys(&keys).unwrap_err().to_string();
        assert!(error.contains("keys are never overwritten"), "{error}");
        fs::copy(others.join("db.key"), keys.join("db.key")).unwrap();
        assert!(say(Signer::open(&keys)).contains("is not the certificate of "));
        fs::copy(keys.join("db.crt"), keys.join("db.cer")).unwrap();
        assert!(say(Signer::open(&keys)).contains("it is no certificate in DER"));
    }

    #[test]
    fn lengths_are_written_and_read_as_short_as_they_can_be() {
        for length in [0, 1, 0x7f, 0x80, 0xff, 0x100, 0xffff, 0x1_0000] {
            let bytes = der(OCTETS, &[&vec![9; length], &[]]);
            let (tag, inside, whole, rest) = value(&bytes).unwrap();
            assert_eq!((tag, inside.len(), whole.len(), rest.len()), (OCTETS, length, bytes.len(), 0));
        }
        assert_eq!(der(OCTETS, &[&[9; 0x80]])[..3], [OCTETS, 0x81, 0x80]);
        assert_eq!(value(&[OCTETS, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
        assert_eq!(value(&[OCTETS, 2, 0]), None);
    }
}
