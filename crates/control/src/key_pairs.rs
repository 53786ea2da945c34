//! Key pairs: CreateKeyPair, ImportKeyPair, DeleteKeyPair.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use md5::Md5;
use model::{Claim, Invalid, KeyPair, KeyPairId, KeyType, Meta, Quota, Tags, check_tags};
use rsa::pkcs1::EncodeRsaPrivateKey;
use rsa::pkcs8::{EncodePrivateKey, EncodePublicKey};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use ssh_key::public::KeyData;
use ssh_key::{Algorithm, LineEnding};

use crate::{Caller, Kind, Plane, Refusal};

/// A key pair to be made or imported.
#[derive(Clone, Debug)]
pub struct NewKeyPair {
    /// Its name.
    pub name: String,
    /// Where its keys come from.
    pub material: KeyMaterial,
    /// What its owner writes on it.
    pub tags: Tags,
}

/// Where the keys of a pair come from.
#[derive(Clone, Debug)]
pub enum KeyMaterial {
    /// They are made now.
    Generate(KeyType),
    /// The public key is given, in OpenSSH's form.
    Public(String),
}

struct Keys {
    kind: KeyType,
    public: String,
    fingerprint: String,
    private: Option<String>,
}

fn claim(caller: &Caller, name: &str) -> String {
    let name: String = name.bytes().map(|b| format!("{b:02x}")).collect();
    format!("key-pair/{}/{name}", caller.account)
}

impl Plane {
    /// Makes a key pair; it, and the private key in PEM if it was made here,
    /// which nobody can ask for again.
    ///
    /// # Errors
    /// [`Refusal::Exists`], [`Refusal::Invalid`], [`Refusal::Quota`].
    pub async fn create_key_pair(
        &self,
        caller: &Caller,
        new: NewKeyPair,
    ) -> Result<(KeyPair, Option<String>), Refusal> {
        let NewKeyPair {
            name,
            material,
            tags,
        } = new;
        check_tags(&tags).map_err(|e| Refusal::invalid("tags", e))?;
        if !(1..=255).contains(&name.len()) || !name.bytes().all(|b| (32..127).contains(&b)) {
            let reason = "a key pair's name has 1 to 255 printable ASCII characters";
            return Err(Refusal::invalid("key_name", reason));
        }
        self.free_key_name(caller, &name)?;
        // An RSA key takes a good part of a second to find.
        let made = tokio::task::spawn_blocking(move || match material {
            KeyMaterial::Generate(KeyType::Rsa) => rsa_keys(),
            KeyMaterial::Generate(KeyType::Ed25519) => ed25519_keys(),
            KeyMaterial::Public(text) => imported(&text),
        });
        let keys = made
            .await
            .map_err(|_| Refusal::Busy)?
            .map_err(|e| Refusal::invalid("public_key_material", e))?;
        let pair = KeyPair {
            id: KeyPairId::random(),
            meta: Meta::new(caller.account.clone(), tags),
            name,
            kind: keys.kind,
            public_key: keys.public,
            fingerprint: keys.fingerprint,
        };
        let _counting = self.counting().await;
        self.transact(|batch| {
            self.free_key_name(caller, &pair.name)?;
            self.within(&caller.account, Quota::KeyPairs, 1)?;
            let holder = pair.id.to_string();
            batch.create(&claim(caller, &pair.name), &Claim { holder })?;
            batch.create(pair.id.as_str(), &pair)
        })
        .await?;
        Ok((pair, keys.private))
    }

    fn free_key_name(&self, caller: &Caller, name: &str) -> Result<(), Refusal> {
        match self.view().get::<Claim>(claim(caller, name)) {
            None => Ok(()),
            Some(_) => Err(Refusal::Exists {
                kind: Kind::KeyPair,
                name: name.to_owned(),
            }),
        }
    }

    /// The pair of this name.
    ///
    /// # Errors
    /// [`Refusal::NotFound`].
    pub fn key_pair_named(&self, caller: &Caller, name: &str) -> Result<KeyPair, Refusal> {
        let missing = || Refusal::not_found(Kind::KeyPair, name);
        let holder = self.view().get::<Claim>(claim(caller, name));
        let id = holder.ok_or_else(missing)?.record.holder.clone();
        let found = self.find::<KeyPair>(caller, id).map_err(|_| missing())?;
        Ok(found.record.clone())
    }

    /// Removes a key pair; machines that have its key keep it.
    ///
    /// # Errors
    /// [`Refusal::NotFound`].
    pub async fn delete_key_pair(&self, caller: &Caller, id: &KeyPairId) -> Result<(), Refusal> {
        self.transact(|batch| {
            let found = self.own::<KeyPair>(caller, id)?;
            batch.remove(&found);
            batch.discard::<Claim>(&claim(caller, &found.record.name));
            Ok(())
        })
        .await
    }
}

fn rsa_keys() -> Result<Keys, Invalid> {
    let failed = |_| Invalid::Key("an RSA key could not be made");
    let key = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).map_err(failed)?;
    let der = key
        .to_pkcs8_der()
        .map_err(|_| Invalid::Key("an RSA key could not be encoded"))?;
    let pem = key
        .to_pkcs1_pem(rsa::pkcs8::LineEnding::LF)
        .map_err(|_| Invalid::Key("an RSA key could not be encoded"))?;
    let public = ssh_key::public::RsaPublicKey::try_from(&key.to_public_key());
    let public = public.map_err(|_| Invalid::Key("an RSA key could not be encoded"))?;
    Ok(Keys {
        kind: KeyType::Rsa,
        public: openssh(KeyData::Rsa(public))?,
        fingerprint: colons(&Sha1::digest(der.as_bytes())),
        private: Some(pem.to_string()),
    })
}

fn ed25519_keys() -> Result<Keys, Invalid> {
    let failed = |_| Invalid::Key("an Ed25519 key could not be made");
    let key = ssh_key::PrivateKey::random(&mut rsa::rand_core::OsRng, Algorithm::Ed25519);
    let key = key.map_err(failed)?;
    let data = key.public_key().key_data().clone();
    Ok(Keys {
        kind: KeyType::Ed25519,
        fingerprint: sha256_of(&data)?,
        public: openssh(data)?,
        private: Some(key.to_openssh(LineEnding::LF).map_err(failed)?.to_string()),
    })
}

fn imported(text: &str) -> Result<Keys, Invalid> {
    let key = ssh_key::PublicKey::from_openssh(text.trim())
        .map_err(|_| Invalid::Key("it is not in OpenSSH's form, as `ssh-ed25519 AAAA… name`"))?;
    let data = key.key_data().clone();
    let (kind, fingerprint) = match &data {
        KeyData::Ed25519(_) => (KeyType::Ed25519, sha256_of(&data)?),
        KeyData::Rsa(public) => {
            let weak = |_| Invalid::Key("the RSA key has no valid numbers");
            let public = rsa::RsaPublicKey::try_from(public).map_err(weak)?;
            let der = public
                .to_public_key_der()
                .map_err(|_| Invalid::Key("the RSA key has no valid numbers"))?;
            (KeyType::Rsa, colons(&Md5::digest(der.as_bytes())))
        }
        _ => return Err(Invalid::Key("keys are RSA or Ed25519 ones")),
    };
    Ok(Keys {
        kind,
        public: openssh(data)?,
        fingerprint,
        private: None,
    })
}

fn openssh(data: KeyData) -> Result<String, Invalid> {
    let key = ssh_key::PublicKey::from(data);
    key.to_openssh()
        .map_err(|_| Invalid::Key("it could not be encoded"))
}

/// As EC2 forms it of Ed25519 keys.
fn sha256_of(data: &KeyData) -> Result<String, Invalid> {
    let text = openssh(data.clone())?;
    let blob = text.split(' ').nth(1).unwrap_or_default();
    let bytes = STANDARD
        .decode(blob)
        .map_err(|_| Invalid::Key("it could not be encoded"))?;
    Ok(STANDARD.encode(Sha256::digest(bytes)))
}

fn colons(digest: &[u8]) -> String {
    let pairs: Vec<String> = digest.iter().map(|b| format!("{b:02x}")).collect();
    pairs.join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_made_that_ssh_reads() {
        for keys in [ed25519_keys().unwrap(), rsa_keys().unwrap()] {
            let again = imported(&format!("{} somebody@somewhere", keys.public)).unwrap();
            assert_eq!((again.kind, &again.public), (keys.kind, &keys.public));
            assert!(again.private.is_none());
            let private = keys.private.unwrap();
            let begins = match keys.kind {
                KeyType::Rsa => "-----BEGIN RSA PRIVATE KEY-----\n",
                KeyType::Ed25519 => "-----BEGIN OPENSSH PRIVATE KEY-----\n",
            };
            assert!(private.starts_with(begins), "{begins}");
        }
        for bad in [
            "",
            "ssh-rsa",
            "ssh-rsa AAAA",
            "-----BEGIN RSA PRIVATE KEY-----",
        ] {
            assert!(imported(bad).is_err(), "{bad}");
        }
    }
}
